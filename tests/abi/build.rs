//! Compares `ceph-sys` with the installed headers, in two ways that complete each other:
//!
//! * `ctest` writes a program that compares layout: sizes, alignments, signs, and each field's offset and type. Of a
//!   function it compares the address only, which proves that the symbol can be linked.
//! * [`signatures`] writes each declaration as C, to be compiled behind the headers: C allows to repeat a declaration
//!   and refuses one that differs.

mod signatures;

use std::{env, error::Error, fs, path::Path};

const SOURCES: [&str; 2] = ["../../ceph-sys/src/rados.rs", "../../ceph-sys/src/shim.rs"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../../ceph-sys");
    let shim = env::var("DEP_RADOS_SHIM_INCLUDE")?;

    let repeated = Path::new(&env::var("OUT_DIR")?).join("signatures.c");
    let mut text = String::from("#include \"shim.h\"\n#include <rados/librados.h>\n#include <time.h>\n");
    for source in SOURCES {
        text += &signatures::as_c(&fs::read_to_string(source)?)?;
    }
    fs::write(&repeated, text)?;
    cc::Build::new()
        .include(&shim)
        .std("c11")
        .warnings_into_errors(true)
        .file(&repeated)
        .try_compile("signatures")?;

    let mut test = ctest::TestGenerator::new();
    test.include(shim)
        .header("shim.h")
        .header("rados/librados.h")
        // The headers name structs by typedef only.
        .rename_struct_ty(|name| name.ends_with("_t").then(|| name.to_owned()))
        // Only a warning otherwise, and it is how a field's type is compared.
        .flag("-Werror=incompatible-pointer-types");
    ctest::generate_test(&mut test, "../../ceph-sys/src/lib.rs", "abi.rs")?;
    Ok(())
}
