//! Memory between bursts of work.

/// Gives what was freed back to the system. A listing of ten thousand instances takes many times what is kept of it,
/// and each thread of a sweep has a heap of its own: glibc keeps all of that for the next time, which is in half a
/// minute (malloc_trim(3)). Milliseconds.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the locks of all heaps by itself, and has no other condition.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
