//! libFuzzer's main: runs the target that KEEPSWEEP_FUZZ names.
#![no_main]

use keepsweep::fuzz::{TARGETS, Target};
use std::sync::LazyLock;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("KEEPSWEEP_FUZZ").unwrap_or_default();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    *found.unwrap_or_else(|| panic!("KEEPSWEEP_FUZZ={name:?} is none of the targets"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.1)(bytes));
