//! Builds the C++ shim and links the system's librados.

use std::path::Path;

/// What the shim includes, and where Debian and Ubuntu keep it.
const HEADER: &str = "rados/librados.hpp";
const PACKAGE: &str = "libradospp-dev";

fn main() {
    for file in ["shim/shim.cc", "shim/shim.h", "build.rs"] {
        println!("cargo::rerun-if-changed={file}");
    }
    if !header_found() {
        println!("cargo::error=the C++ header <{HEADER}> is missing: install the package {PACKAGE}");
        return;
    }
    cc::Build::new().cpp(true).std("c++17").warnings(true).file("shim/shim.cc").compile("rbd_guardian_shim");
    println!("cargo::rustc-link-lib=dylib=rados");
    // The ABI test compares the declarations with this header.
    println!("cargo::metadata=shim_include={}/shim", env("CARGO_MANIFEST_DIR"));
}

/// Asks the compiler that will build the shim, so that cross builds and `CXXFLAGS` count.
fn header_found() -> bool {
    let probe = Path::new(&env("OUT_DIR")).join("probe.cc");
    let text = format!("#if !__has_include(<{HEADER}>)\n#error \"missing\"\n#endif\n");
    std::fs::write(&probe, text).is_ok()
        && cc::Build::new()
            .cpp(true)
            .std("c++17")
            .cargo_metadata(false)
            .cargo_warnings(false)
            .file(&probe)
            .try_expand()
            .is_ok()
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}
