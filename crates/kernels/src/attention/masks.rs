//! Which keys a query sees, as arrays.

use std::cell::RefCell;

use mlx::{Array, Dtype, Result};

use super::{Attention, Positions, Sizes};

/// Masks made for the calls of one step, whose layers differ in their windows at most. All calls
/// that share one have the same positions and number of queries.
#[derive(Debug, Default)]
pub struct Masks(RefCell<Vec<Made>>);

#[derive(Debug)]
struct Made {
    window: Option<i32>,
    /// Positions of the keys: from, up to.
    keys: (i32, i32),
    mask: Array,
}

impl Masks {
    /// Which of the keys at positions `from..to` every query sees: `[L, to − from]`, or
    /// `[B, 1, L, to − from]` where rows differ.
    pub(super) fn get(
        &self,
        a: &Attention<'_>,
        s: Sizes,
        window: Option<i32>,
        keys: (i32, i32),
    ) -> Result<Array> {
        let mut kept = self.0.borrow_mut();
        if let Some(made) = kept.iter().find(|m| (m.window, m.keys) == (window, keys)) {
            return Ok(made.mask.clone());
        }
        let range =
            |from: i32, to: i32| Array::arange(f64::from(from), f64::from(to), 1.0, Dtype::I32);
        let queries = match a.positions {
            Positions::Same(at) => range(at, at + s.queries)?.expand_dims(&[1])?,
            Positions::Rows { positions, .. } => {
                let own = positions.reshape(&[-1, 1, 1, 1])?;
                range(0, s.queries)?.expand_dims(&[1])?.add(&own)?
            }
        };
        let distance = queries.sub(&range(keys.0, keys.1)?)?;
        let mut mask = distance.ge(&Array::from_slice(&[0i32], &[])?)?;
        if let Some(window) = window {
            mask = mask.logical_and(&distance.lt(&Array::from_slice(&[window], &[])?)?)?;
        }
        kept.push(Made { window, keys, mask: mask.clone() });
        Ok(mask)
    }
}
