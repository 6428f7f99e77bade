//! How the C library keeps the program's memory. The one file with code that the compiler cannot
//! check.
//!
//! A chunk on its way to the disk is a buffer of 1 MiB. By default the C library gives a buffer of
//! that size back to the kernel as soon as it is free, and asks for the next one page by page: a
//! sixth of what an upload costs a server.

/// Has free buffers of the size of chunks kept for the next ones, up to a limit. Where it cannot be
/// had, uploads cost more, and nothing else.
#[allow(unsafe_code)]
pub fn keep_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use crate::limits::{HEAP_KEPT_BYTES, MAPPED_FROM_BYTES};
        let settings = [
            (libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES),
            (libc::M_TRIM_THRESHOLD, HEAP_KEPT_BYTES),
        ];
        for (setting, bytes) in settings {
            // SAFETY: it takes two numbers by value, and touches nothing but the allocator's own
            // parameters, under the allocator's own lock.
            let is_set = unsafe { libc::mallopt(setting, bytes) };
            debug_assert_eq!(is_set, 1, "glibc takes these values");
        }
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    #[test]
    fn the_c_library_takes_the_settings() {
        // It asserts it itself.
        super::keep_large_buffers();
    }
}
