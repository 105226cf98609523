//! Memory between bursts of work, where it is glibc's.

/// Number of heaps for all threads. librados alone has a dozen threads, and memory that is free in one heap serves no
/// thread of another heap (mallopt(3)).
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;
/// Blocks of at least this many bytes return to the system as soon as they are freed. That is glibc's default too, but
/// freeing a large listing would raise the threshold to the listing's size (mallopt(3)).
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
