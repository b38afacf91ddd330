//! Compiles the BPF programs of `xdp/` with clang, for `src/io/` to embed.
//!
//! With `KEEPSWEEP_LOOM` set it turns on `cfg(loom)`, for this crate alone: by RUSTFLAGS it would hold
//! for every dependency, and all of them would be built a second time.

use std::env;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-changed=xdp");
    println!("cargo::rerun-if-env-changed=CLANG");
    println!("cargo::rerun-if-env-changed=KEEPSWEEP_LOOM");
    if env::var_os("KEEPSWEEP_LOOM").is_some() {
        println!("cargo::rustc-cfg=loom");
    }

    // The pure core has no BPF programs, and needs no clang.
    if env::var_os("CARGO_FEATURE_OS").is_none() {
        return;
    }

    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = std::fs::read_dir("xdp").unwrap_or_else(|error| fail("list xdp/", error));
    for source in sources {
        let source = source.unwrap_or_else(|error| fail("list xdp/", error)).path();
        let name = source.file_name().and_then(|name| name.to_str());
        if let Some(stem) = name.and_then(|name| name.strip_suffix(".bpf.c")) {
            compile(&source, &out_dir.join(format!("{stem}.bpf.o")));
        }
    }
}

fn compile(source: &Path, object: &Path) {
    let clang = env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let mut command = Command::new(&clang);
    command.args(["-target", bpf_target(), "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror"]);
    for dir in asm_include_dirs() {
        command.arg("-idirafter").arg(dir);
    }
    command.arg("-c").arg(source).arg("-o").arg(object);

    match command.output() {
        Err(error) => fail(&format!("run {command:?}"), error),
        Ok(output) if !output.status.success() => fail(
            &format!("run {command:?}"),
            format_args!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)),
        ),
        Ok(_) => {}
    }
}

/// The byte order of the machine that the program will run on, not of the one that builds it.
fn bpf_target() -> &'static str {
    match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb",
        _ => "bpfel",
    }
}

/// Debian and its kin keep asm/ in a folder per architecture, where `-target bpf` does not look.
fn asm_include_dirs() -> Vec<PathBuf> {
    let arch = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86") => "i386".to_owned(),
        Ok("powerpc64") => "powerpc64le".to_owned(),
        Ok(arch) => arch.to_owned(),
        Err(_) => return Vec::new(),
    };
    ["gnu", "gnueabihf", "musl"]
        .iter()
        .map(|abi| PathBuf::from(format!("/usr/include/{arch}-linux-{abi}")))
        .filter(|dir| dir.is_dir())
        .collect()
}

fn fail(operation: &str, reason: impl Display) -> ! {
    let reason = reason.to_string();
    for line in format!("{operation}: {reason}").lines().filter(|line| !line.is_empty()) {
        println!("cargo::error={line}");
    }
    println!(
        "cargo::error=the BPF programs need clang and the headers of libbpf and the kernel: \
         scripts/setup installs them; set CLANG to use another clang"
    );
    exit(1);
}
