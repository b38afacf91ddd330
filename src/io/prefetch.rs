//! A hint to the CPU: what is read soon.

/// Has the CPU fetch the cache line in which `what` begins; changes nothing but the time that takes.
///
/// Does nothing on processors other than x86-64: stable Rust has no such hint for them.
#[inline(always)]
pub(crate) fn prefetch<T>(what: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has the instruction, which neither reads nor writes as far as a program
        // can tell, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = what;
}
