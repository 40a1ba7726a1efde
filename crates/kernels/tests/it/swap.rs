//! Rows out to the host's pinned memory and back, against their bytes.

use kernels::swap::{Swap, Way, swap};
use mlx::{Array, Backend, Dtype, PinnedMemory};

use crate::{Values, device};

/// Arrays of pairwise different rows.
fn arrays(values: &mut Values) -> Vec<Array> {
    let shapes: [(&[i32], Dtype); 3] = [
        (&[9, 4, 3, 8], Dtype::Bf16),
        (&[9, 2, 5, 64], Dtype::F32),
        (&[9, 1, 16, 1000], Dtype::F16),
    ];
    let made = shapes.map(|(shape, dtype)| values.array(shape, |x| x).astype(dtype).unwrap());
    mlx::eval(&made).unwrap();
    made.to_vec()
}

/// A row's bytes, one array's after the other's.
fn row(arrays: &[Array], row: u32) -> Vec<u8> {
    let of = |array: &Array| {
        let row = row as i32;
        array.slice_axis(0, row..row + 1).unwrap().contiguous().unwrap().to_bytes().unwrap()
    };
    arrays.iter().flat_map(of).collect()
}

#[test]
fn rows_go_out_and_come_back_and_all_others_stay() {
    if device().backend() != Backend::Cuda {
        assert!(PinnedMemory::reserve(1).is_err());
        return;
    }
    let mut values = Values(3);
    let (from, to) = (arrays(&mut values), arrays(&mut values));
    let memory = PinnedMemory::reserve(200 << 20).unwrap();
    let after = Array::zeros(&[1], Dtype::U32).unwrap();
    let n_bytes = row(&from, 0).len();
    // The last lies across what was pinned at different times.
    let places = [3 * n_bytes, 0, (64 << 20) - 48];
    let pointers = from.iter().collect::<Vec<_>>();
    let out = Swap { arrays: &pointers, rows: &[7, 0, 5], places: &places, after: &after };
    swap(Way::Out, &memory, &out).unwrap().eval().unwrap();
    for (id, place) in out.rows.iter().zip(places) {
        assert_eq!(memory.read(place..place + n_bytes).unwrap(), row(&from, *id), "row {id}");
    }
    let before = (0..9).map(|id| row(&to, id)).collect::<Vec<_>>();
    let pointers = to.iter().collect::<Vec<_>>();
    let stream = device().new_stream().unwrap();
    let done = stream.scope(|| {
        let back = Swap { arrays: &pointers, rows: &[1, 8, 2], places: &places, after: &after };
        swap(Way::In, &memory, &back)
    });
    done.unwrap().eval().unwrap();
    for (id, before) in before.into_iter().enumerate() {
        let wanted = match id {
            1 => row(&from, 7),
            8 => row(&from, 0),
            2 => row(&from, 5),
            _ => before,
        };
        assert_eq!(row(&to, id as u32), wanted, "row {id}");
    }
}

#[test]
fn moves_to_nowhere_are_refused() {
    let device = device();
    if device.backend() != Backend::Cuda {
        return;
    }
    let memory = PinnedMemory::reserve(1 << 20).unwrap();
    let array = Array::zeros(&[4, 8], Dtype::F32).unwrap();
    let after = Array::zeros(&[1], Dtype::U32).unwrap();
    let odd = Array::zeros(&[4, 7], Dtype::F32).unwrap();
    let end = memory.n_bytes();
    let cases: [(&str, &Array, &[u32], &[usize]); 5] = [
        ("nothing", &array, &[], &[]),
        ("row 4 is none of 4", &array, &[4], &[0]),
        ("rows of 28 bytes", &odd, &[0], &[0]),
        ("byte 8", &array, &[0], &[8]),
        ("nothing can lie", &array, &[0], &[end - 16]),
    ];
    for (words, array, rows, places) in cases {
        let what = Swap { arrays: &[array], rows, places, after: &after };
        let error = swap(Way::Out, &memory, &what).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = memory.wait_for(end + 1).unwrap_err().to_string();
    assert!(error.contains("more than"), "{error}");
}
