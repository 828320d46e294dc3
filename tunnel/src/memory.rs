//! How the process keeps its heap.

/// How much free memory at the top of the heap is kept, in bytes.
const TRIM_THRESHOLD: i32 = 64 << 20;

/// From which size on an allocation gets a mapping of its own, in bytes.
const MMAP_THRESHOLD: i32 = 32 << 20;

/// How much more than needed the heap grows by, in bytes.
const TOP_PAD: i32 = 4 << 20;

/// Has glibc keep what is freed, for the buffers of the next moment. By default
/// it gives large ones back to the kernel at once, and takes them again page by
/// page: a quarter of the time that a flow costs. Call it first in `main`.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    for (option, value) in [
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD),
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD),
        (libc::M_TOP_PAD, TOP_PAD),
    ] {
        set(option, value);
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no crate wraps this call")]
fn set(option: libc::c_int, value: libc::c_int) {
    // SAFETY: the call takes integers; what it does not like it refuses.
    let taken = unsafe { libc::mallopt(option, value) };
    debug_assert_eq!(taken, 1, "mallopt({option}, {value})");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_options_are_taken() {
        super::keep_freed();
    }
}
