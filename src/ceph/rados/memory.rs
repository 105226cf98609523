//! Memory between bursts of work, where it is glibc's.

/// So many heaps for all threads. The client of the storage alone has a dozen, and what is free in one's heap serves no
/// other (mallopt(3)).
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;
/// From this size on a block goes back to the system by itself as soon as it is free, in bytes. glibc begins so, but
/// takes the first listing that is freed for a sign that blocks of its size are common, and keeps them among the small
/// ones from then on (mallopt(3)).
#[cfg(target_env = "gnu")]
const APART: i32 = 128 << 10;

/// Before the first thread.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [(nix::libc::M_ARENA_MAX, HEAPS), (nix::libc::M_MMAP_THRESHOLD, APART)] {
        // SAFETY: it sets a number of the allocator's, under its own lock.
        unsafe {
            nix::libc::mallopt(what, value);
        }
    }
}

/// Gives what was freed back to the system. A listing of ten thousand instances takes many times what is kept of it:
/// glibc keeps all of that for the next time, which is in half a minute (malloc_trim(3)). Milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the locks of all heaps by itself, and has no other condition.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
