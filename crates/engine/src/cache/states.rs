//! States of recurrent layers in slots.
//!
//! After a pass over several rows the states of all are one array for each layer. Cutting it into
//! rows and joining them again for the next pass would cost more than the pass, so a slot may hold
//! a row of it. What leaves the batch becomes an array of its own, which keeps nothing else alive.

use std::rc::Rc;

use mlx::{Array, Dtype};
use models::{Memory, RecurrentState};

use crate::Result;

/// The memory of recurrent layers after the same tokens, in the order of layers.
pub(crate) type States = Vec<RecurrentState>;

/// What a slot holds.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// States of its own, `[1, ..]`.
    Own(States),
    /// A row of a pass's, `[B, ..]`.
    Row { of: Rc<States>, row: i32 },
}

impl Default for Held {
    fn default() -> Self {
        Self::Own(States::new())
    }
}

impl Held {
    /// Whether there is no array in it.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Own(states) if states.is_empty())
    }

    /// The states apart from those of other rows. They are being computed when this returns.
    pub fn own(&self) -> Result<States> {
        let (of, row) = match self {
            Self::Own(states) => return Ok(states.clone()),
            Self::Row { of, row } => (of, *row),
        };
        let part = |whole: &Option<Array>| {
            let part = whole.as_ref().map(|whole| whole.slice_axis(0, row..row + 1)?.contiguous());
            part.transpose()
        };
        let states = of.iter().map(|state| {
            Ok(RecurrentState {
                conv_tail: part(&state.conv_tail)?,
                state: part(&state.state)?,
                captured: Vec::new(),
            })
        });
        let states = states.collect::<Result<States>>()?;
        let arrays = states.iter().flat_map(|s| [&s.conv_tail, &s.state]).flatten();
        mlx::async_eval(&arrays.cloned().collect::<Vec<_>>())?;
        Ok(states)
    }
}

/// The states of several rows, `[B, ..]` for each of the `layers`; zeros for rows before their
/// first token.
pub(crate) fn joined(rows: &[Held], layers: &[&Memory], dtype: Dtype) -> Result<States> {
    match rows {
        [Held::Own(states)] => return Ok(states.clone()),
        [Held::Row { of, .. }, ..] if is_whole(rows, of) => return Ok(of.to_vec()),
        _ => {}
    }
    let layers = layers.iter().enumerate().map(|(layer_idx, memory)| {
        let Memory::Recurrent { tail, state } = memory else { return Ok(Default::default()) };
        let tail_of = |s: &RecurrentState| s.conv_tail.clone();
        let state_of = |s: &RecurrentState| s.state.clone();
        Ok(RecurrentState {
            conv_tail: Some(stacked(rows, layer_idx, tail_of, tail, dtype)?),
            state: Some(stacked(rows, layer_idx, state_of, state, Dtype::F32)?),
            captured: Vec::new(),
        })
    });
    layers.collect()
}

/// Whether these are all rows of `whole` in their order.
fn is_whole(rows: &[Held], whole: &Rc<States>) -> bool {
    let n = whole.iter().find_map(|s| s.state.as_ref()).map_or(0, |state| state.dim(0));
    n as usize == rows.len()
        && (0..n).zip(rows).all(|(i, held)| match held {
            Held::Row { of, row } => *row == i && Rc::ptr_eq(of, whole),
            Held::Own(_) => false,
        })
}

/// One array of a layer for all rows; neighbours that come from the same pass are taken at once.
fn stacked(
    rows: &[Held],
    layer_idx: usize,
    part: impl Fn(&RecurrentState) -> Option<Array>,
    size: &[i32],
    dtype: Dtype,
) -> Result<Array> {
    let same = |a: &Held, b: &Held| match (a, b) {
        (Held::Row { of: a, .. }, Held::Row { of: b, .. }) => Rc::ptr_eq(a, b),
        _ => false,
    };
    let runs = rows.chunk_by(same).map(|run| {
        let (whole, indices) = match run {
            [Held::Own(states), ..] => (states.get(layer_idx).and_then(&part), None),
            [Held::Row { of, .. }, ..] => {
                let row = |held: &Held| match held {
                    Held::Row { row, .. } => *row,
                    Held::Own(_) => unreachable!("a run is of one kind"),
                };
                let indices = run.iter().map(row).collect::<Vec<_>>();
                (of.get(layer_idx).and_then(&part), Some(indices))
            }
            [] => unreachable!("a run has a row"),
        };
        match (whole, indices) {
            (None, indices) => {
                let n = indices.map_or(1, |rows| rows.len() as i32);
                Ok(Array::zeros(&[&[n], size].concat(), dtype)?)
            }
            (Some(whole), None) => Ok(whole),
            (Some(whole), Some(rows)) => {
                Ok(whole.take(&Array::staged(&rows, &[rows.len() as i32])?, 0)?)
            }
        }
    });
    let runs = runs.collect::<Result<Vec<_>>>()?;
    match &runs[..] {
        [one] => Ok(one.clone()),
        _ => Ok(mlx::concatenate(&runs.iter().collect::<Vec<_>>(), 0)?),
    }
}
