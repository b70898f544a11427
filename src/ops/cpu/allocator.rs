//! Keeps freed memory instead of giving it back: with glibc's defaults every large tensor is mapped, page-faulted, used
//! and unmapped, which costs a training step a third of its time.

/// Call once, first thing in `main`.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        // SAFETY: glibc's documented interface; the parameters are constants of malloc.h.
        unsafe {
            mallopt(-4, 0); // M_MMAP_MAX: never map single blocks
            mallopt(-1, i32::MAX); // M_TRIM_THRESHOLD: never give the top back
            mallopt(-2, 64 << 20); // M_TOP_PAD: grow in 64 MiB steps
        }
    }
}
