//! MLX's memory counters and limits, in bytes, of the default device's allocator.

use mlx_sys::ffi;

use crate::{Result, error};

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty)?) -> $ret:ty = $call:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name($($arg: $ty)?) -> Result<$ret> {
            ffi::$call($($arg)?).map_err(|e| error::of_op(stringify!($name), &[], e))
        }
    )*};
}

calls! {
    /// Bytes held by live arrays.
    active_bytes() -> usize = active_memory;
    /// The most that `active_bytes` has been since the start or the last reset.
    peak_bytes() -> usize = peak_memory;
    /// Starts the peak anew.
    reset_peak() -> () = reset_peak_memory;
    /// Bytes of freed buffers kept for reuse.
    cache_bytes() -> usize = cache_memory;
    /// Gives the freed buffers back to the system.
    clear_cache() -> () = clear_cache;
    /// The guideline above which allocations first wait for running work and free cached buffers.
    limit_bytes() -> usize = memory_limit;
    /// Sets the guideline; returns the former one.
    set_limit_bytes(bytes: usize) -> usize = set_memory_limit;
    /// Limits how many bytes of freed buffers are kept; returns the former limit.
    set_cache_limit_bytes(bytes: usize) -> usize = set_cache_limit;
}
