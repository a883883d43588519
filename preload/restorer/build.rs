//! A program without libc and without a loader: it replaces all that is mapped, itself included.

fn main() {
    for argument in ["-nostartfiles", "-nostdlib", "-static-pie", "-Wl,-z,norelro", "-Wl,--build-id=none"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
