//! What can go wrong in MLX, with the operation and the shapes that it was given.

use crate::Array;

/// A failed MLX call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation rejected its inputs, or evaluation failed.
    #[error("{op}({inputs}): {message}")]
    Op {
        /// The method's name.
        op: &'static str,
        /// Dtype and shape of every input.
        inputs: String,
        /// MLX's own words.
        message: String,
    },
    /// The device has no memory left for the allocation.
    ///
    /// CUDA and Metal report it. MLX's CPU allocator does not check what `malloc` returns, and
    /// Linux rarely refuses: there memory must be counted before it is asked for.
    #[error("{op}: out of device memory: {message}")]
    OutOfMemory {
        /// The method's name.
        op: &'static str,
        /// MLX's own words.
        message: String,
    },
    /// The library that was loaded is not the release the headers are from.
    #[error(
        "libmlx is version {found}, but this program was built for {wanted}: point it at the \
         library of that release"
    )]
    Version {
        /// The library's version.
        found: String,
        /// The headers' version.
        wanted: &'static str,
    },
    /// The backend is not in the library that was loaded, or no such device is present.
    #[error(
        "the {0} backend is not available: this libmlx was built without it, or no such device \
         is present"
    )]
    NoBackend(crate::Backend),
    /// A value was read as another type than it has.
    #[error("{op}: the array holds {found}, not {wanted}")]
    Dtype {
        /// The method's name.
        op: &'static str,
        /// The array's dtype.
        found: crate::Dtype,
        /// The dtype asked for.
        wanted: crate::Dtype,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether memory is what was missing: the one failure that evicting and trying again can cure.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::OutOfMemory { .. })
    }
}

/// How MLX's allocators word a refusal (CPU, CUDA, Metal).
const OUT_OF_MEMORY: &[&str] = &[
    "[malloc",
    "Unable to allocate",
    "out of memory",
    "Insufficient Memory",
    "maximum allowed buffer size",
];

/// Names the operation and its inputs in what C++ threw.
pub(crate) fn of_op(op: &'static str, inputs: &[&Array], thrown: cxx::Exception) -> Error {
    classify(op, inputs, thrown.what().to_owned())
}

fn classify(op: &'static str, inputs: &[&Array], message: String) -> Error {
    if OUT_OF_MEMORY.iter().any(|words| message.contains(words)) {
        return Error::OutOfMemory { op, message };
    }
    let inputs = inputs.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(", ");
    Error::Op { op, inputs, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocators_refusals_are_known_by_their_words() {
        for message in [
            "[malloc] Unable to allocate 123 bytes.",
            "[metal::malloc] Attempting to allocate 5 bytes: the maximum allowed buffer size is 4",
            "cudaMallocAsync failed: out of memory",
        ] {
            assert!(classify("eval", &[], message.to_owned()).is_out_of_memory(), "{message}");
        }
        assert!(!classify("eval", &[], "shapes differ".to_owned()).is_out_of_memory());
    }
}
