//! Element types: MLX's numbering of them, and the Rust types that match.

use std::fmt;

/// The type of an array's elements. The numbers are those of MLX's `Dtype::Val`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Dtype {
    Bool = 0,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    F32,
    F64,
    Bf16,
    Complex64,
}

impl Dtype {
    const ALL: [Dtype; 14] = [
        Dtype::Bool,
        Dtype::U8,
        Dtype::U16,
        Dtype::U32,
        Dtype::U64,
        Dtype::I8,
        Dtype::I16,
        Dtype::I32,
        Dtype::I64,
        Dtype::F16,
        Dtype::F32,
        Dtype::F64,
        Dtype::Bf16,
        Dtype::Complex64,
    ];

    pub(crate) fn from_code(code: u8) -> Self {
        *Self::ALL.get(usize::from(code)).expect("MLX has no dtype beyond complex64")
    }

    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 => 1,
            Dtype::U16 | Dtype::I16 | Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::U32 | Dtype::I32 | Dtype::F32 => 4,
            Dtype::U64 | Dtype::I64 | Dtype::F64 | Dtype::Complex64 => 8,
        }
    }

    /// Whether elements are real floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::F32 | Dtype::F64 | Dtype::Bf16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::Bool => "bool",
            Dtype::U8 => "u8",
            Dtype::U16 => "u16",
            Dtype::U32 => "u32",
            Dtype::U64 => "u64",
            Dtype::I8 => "i8",
            Dtype::I16 => "i16",
            Dtype::I32 => "i32",
            Dtype::I64 => "i64",
            Dtype::F16 => "f16",
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
            Dtype::Bf16 => "bf16",
            Dtype::Complex64 => "complex64",
        })
    }
}

/// A Rust type that is laid out like an MLX dtype. Sealed: the layouts are what the unsafe code
/// relies on.
pub trait Element: Copy + 'static + sealed::Plain {
    /// The dtype with this layout.
    const DTYPE: Dtype;
}

pub(crate) mod sealed {
    /// Types without padding.
    pub trait Plain {
        /// Whether these bytes are values of the type. Views and raw bytes can make bools of
        /// anything.
        fn holds(_bytes: &[u8]) -> bool {
            true
        }
    }

    impl Plain for bool {
        fn holds(bytes: &[u8]) -> bool {
            bytes.iter().all(|&byte| byte <= 1)
        }
    }
}

/// What is said of bytes that [`sealed::Plain::holds`] refuses.
pub(crate) const NO_BOOL: &str = "a bool is stored as 0 or 1, but other bytes are there";

macro_rules! elements {
    ($($rust:ty => $dtype:ident),* $(,)?) => {$(
        impl Element for $rust {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}

macro_rules! plain {
    ($($rust:ty),*) => {$(impl sealed::Plain for $rust {})*};
}

plain!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64);

elements! {
    bool => Bool, u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    i8 => I8, i16 => I16, i32 => I32, i64 => I64, f32 => F32, f64 => F64,
}
