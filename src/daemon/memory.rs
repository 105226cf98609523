//! Memory between bursts of work, where it is glibc's.

/// From this size on a block goes back to the system by itself as soon as it is free, in bytes: glibc begins so
/// (mallopt(3)).
#[cfg(target_env = "gnu")]
const APART: i32 = 128 << 10;

/// Large blocks stay apart. Otherwise glibc takes the first listing that is freed for a sign that blocks of its size
/// are common, and keeps them among the small ones, which hold up what is given back.
pub(super) fn keep_large_blocks_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator's, under its own lock.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, APART);
    }
}

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
