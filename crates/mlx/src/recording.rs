//! Launches that are made again without building their graph.

use std::fmt;

use cxx::SharedPtr;
use mlx_sys::ffi;

use crate::array::{list, unlist};
use crate::{Array, Result, error};

/// The launches of [`CudaKernel`](crate::CudaKernel)s that lead from some arrays, the sources, to
/// others. What lies in between must depend on nothing but the sources' contents: whoever makes one
/// vouches for it, and can hold it against another with [`Recording::is_same`].
pub struct Recording(SharedPtr<ffi::Recording>);

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recording")
    }
}

impl Recording {
    /// How `outputs`, which must not be evaluated, come from `sources`. None if anything but
    /// launches lies between, or too few of them to be worth it; so on other backends.
    ///
    /// # Errors
    /// A kernel cannot be compiled.
    pub fn of<'a>(
        outputs: impl IntoIterator<Item = &'a Array>,
        sources: impl IntoIterator<Item = &'a Array>,
    ) -> Result<Option<Self>> {
        let made = ffi::record(&list(outputs), &list(sources));
        let made = made.map_err(|e| error::of_op("record", &[], e))?;
        Ok((!made.is_null()).then_some(Self(made)))
    }

    /// Whether both make the same launches, over the same arrays beside their sources. Arrays are
    /// the same if one is the other's handle: what each graph has made anew is not.
    pub fn is_same(&self, other: &Self) -> bool {
        ffi::is_same(&self.0, &other.0).unwrap_or(false)
    }

    /// The outputs over other sources of the same shapes and dtypes, in the same order.
    ///
    /// # Errors
    /// Memory is short.
    pub fn run<'a>(&self, sources: impl IntoIterator<Item = &'a Array>) -> Result<Vec<Array>> {
        unlist("replay", &[], ffi::replay(&self.0, &list(sources)))
    }
}
