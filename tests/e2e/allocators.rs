//! Programs with an allocator of their own: linked, or preloaded before and after ours. Their constructors and
//! their first malloc run before our library is ready, and inside our wrappers.

use std::path::PathBuf;

use stasis_tests::{Lab, Launch, compile, find_library, skip};

/// Checkpoints in the midst of it, kills, restarts, twice; no block may be damaged.
#[track_caller]
fn survives(lab: &Lab, launch: Launch) {
    let mut running = launch.start();
    running.wait_ready();
    for _ in 0..5 {
        lab.checkpoint(&[]);
    }
    for _ in 0..2 {
        lab.checkpoint_kill(running);
        running = lab.restart(["latest"]);
    }
    running.expect_ok();
}

fn library(name: &str) -> Option<String> {
    let found = find_library(name).map(|path: PathBuf| path.to_str().unwrap().to_owned());
    if found.is_none() {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// The user's own LD_PRELOAD: ours goes before it.
#[track_caller]
fn preloaded_after_ours(name: &str) {
    let Some(library) = library(name) else { return };
    let lab = Lab::new();
    survives(&lab, lab.prepare([compile::program("heap")]).environment("LD_PRELOAD", library));
}

/// Ours put behind another by the user.
#[track_caller]
fn preloaded_before_ours(name: &str) {
    let Some(library) = library(name) else { return };
    let lab = Lab::new();
    let order = format!("LD_PRELOAD={library}:{}", Launch::library().display());
    survives(&lab, lab.prepare(["env".into(), order.into(), compile::program("heap").into_os_string()]));
}

/// Linked: it is loaded after ours, and is the program's own dependency.
#[track_caller]
fn linked(name: &str) {
    let Some(library) = library(name) else { return };
    let lab = Lab::new();
    survives(&lab, lab.prepare([compile::program_with("heap", &["-Wl,--no-as-needed", &library])]));
}

macro_rules! allocators {
    ($($module:ident: $library:literal;)*) => {$(
        mod $module {
            #[test]
            fn linked() {
                super::linked($library);
            }

            #[test]
            fn preloaded_before_ours() {
                super::preloaded_before_ours($library);
            }

            #[test]
            fn preloaded_after_ours() {
                super::preloaded_after_ours($library);
            }
        }
    )*};
}

allocators! {
    jemalloc: "libjemalloc.so.2";
    tcmalloc: "libtcmalloc_minimal.so.4";
    mimalloc: "libmimalloc.so.2.0";
}

#[test]
fn the_libcs_own() {
    let lab = Lab::new();
    survives(&lab, lab.prepare([compile::program("heap")]));
}
