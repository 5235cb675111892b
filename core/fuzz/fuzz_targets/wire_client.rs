//! An attacker without the key against a client.
#![no_main]

mod attack;

use libfuzzer_sys::fuzz_target;
use procession_core::wire::Role;

fuzz_target!(|bytes: &[u8]| attack::attacked(Role::Client, bytes));
