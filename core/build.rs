//! Names this build of the engine by its sources, so that processes which would misread each other's memory notice.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files)?;
    files.sort();
    // FNV-1a, 64 bits: it guards against mistakes, not against attacks.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in files {
        let name = file.strip_prefix(&root).unwrap_or(&file);
        feed(name.as_os_str().as_encoded_bytes());
        feed(&fs::read(&file)?);
    }
    println!("cargo::rustc-env=PROCESSION_BUILD={hash}");
    // Builds in which another system may stand below the engine (`sys::simulation`).
    let is_set = |flag| env::var_os(format!("CARGO_CFG_{flag}")).is_some();
    if is_set("CRASH_POINTS") || is_set("LOOM") {
        println!("cargo::rustc-cfg=simulated");
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
