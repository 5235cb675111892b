//! Every store of every operation: killed before it, and stopped before it.

use crate::child::{alone, fork};
use crate::scene::{OPERATIONS, Scene};
use procession_core::sys::crash::{self, Action};

/// No operation makes more stores than this.
const STORES_MAX: u64 = 5_000;

#[test]
fn a_kill_before_any_store_is_survived() {
    let _alone = alone();
    let mut total = 0;
    for operation in OPERATIONS {
        let mut killed = 0;
        if std::env::var("OPERATION").is_ok_and(|wanted| !operation.name.contains(&wanted)) {
            continue;
        }
        let first = std::env::var("STORE")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(1);
        for n in first..STORES_MAX {
            let scene = Scene::new(operation);
            let child = fork(|| {
                crash::arm(n, Action::Kill);
                (operation.run)(&scene);
                crash::disarm();
            });
            let status = child.wait();
            scene.check(operation, &format!("killed before store {n}"));
            if status == 0 {
                break;
            }
            assert_eq!(status, -libc::SIGKILL, "{}, store {n}", operation.name);
            killed += 1;
        }
        println!("{}: {killed} stores, each killed once", operation.name);
        assert!(killed > 0, "{} stores nothing", operation.name);
        total += killed;
    }
    println!("{total} kills in {} operations", OPERATIONS.len());
}

#[test]
fn every_operation_passes_sites() {
    let _alone = alone();
    for operation in OPERATIONS {
        let scene = Scene::new(operation);
        let sites = crash::sites(|| (operation.run)(&scene));
        println!("{}:", operation.name);
        for (file, line) in sites {
            println!("  {file}:{line}");
        }
    }
}
