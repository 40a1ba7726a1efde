//! Passes through a model's layers with as little work of the host as there can be.
//!
//! On CUDA a pass is hundreds of launches, and building their graph takes longer than they do. A
//! pass that decodes makes the same launches as the one before it: it is recorded, and run again
//! over the arrays that differ. Recordings are kept by the shapes of these arrays. None is used
//! before the graph was built twice and gave the same one, with nothing in it that was made anew.

use std::collections::HashMap;

use mlx::{Array, Backend, Device, Recording};
use models::{LayerState, Loaded, Step};

use crate::Result;

/// Recordings that are kept. Each batch size has one for every length of block tables.
const MAX_KNOWN: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Passes {
    known: HashMap<Vec<i32>, Known>,
}

#[derive(Debug)]
enum Known {
    /// Built once.
    Built(Recording),
    /// Built twice, alike.
    Proven(Recording),
    /// There is more to it than launches.
    Unfit,
}

impl Passes {
    /// [`models::Model::forward`] of a pass that captures nothing.
    ///
    /// # Errors
    /// Memory is short, or MLX refuses an operation.
    pub fn run(
        &mut self,
        loaded: &Loaded,
        ids: &Array,
        step: &Step,
        states: &mut [LayerState],
    ) -> Result<Array> {
        if Device::current_backend() != Backend::Cuda {
            return Ok(loaded.model.forward(ids, step, states)?);
        }
        let embedded = loaded.model.embed(ids)?;
        if step.n_tokens != 1 {
            let hidden = loaded.model.through_layers(&embedded, step, states)?;
            return keep(mlx::joined(made(&hidden, states))?, states);
        }
        let before = states.iter().flat_map(LayerState::arrays);
        let sources = [&embedded].into_iter().chain(step.arrays()).chain(before);
        let sources = sources.cloned().collect::<Vec<_>>();
        let mut key = Vec::new();
        for source in &sources {
            key.push(source.n_dims() as i32);
            key.extend_from_slice(source.shape());
        }
        if let Some(Known::Proven(recording)) = self.known.get(&key) {
            return keep(recording.run(&sources)?, states);
        }
        let hidden = loaded.model.through_layers(&embedded, step, states)?;
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        let now = match self.known.remove(&key) {
            Some(Known::Unfit) => Known::Unfit,
            before => match (Recording::of(made(&hidden, states), &sources)?, before) {
                (None, _) => Known::Unfit,
                (Some(now), Some(Known::Built(before))) if now.is_same(&before) => {
                    Known::Proven(now)
                }
                (Some(now), _) => Known::Built(now),
            },
        };
        let joined = match &now {
            Known::Built(recording) | Known::Proven(recording) => recording.run(&sources)?,
            Known::Unfit => mlx::joined(made(&hidden, states))?,
        };
        self.known.insert(key, now);
        keep(joined, states)
    }
}

/// What a pass has made: recurrent layers' states, then what comes out.
fn made<'a>(hidden: &'a Array, states: &'a [LayerState]) -> impl Iterator<Item = &'a Array> {
    let recurrent = states.iter().filter(|state| matches!(state, LayerState::Recurrent(_)));
    recurrent.flat_map(LayerState::arrays).chain([hidden])
}

/// Puts what [`made`] lists where it was; returns what comes out.
fn keep(made: Vec<Array>, states: &mut [LayerState]) -> Result<Array> {
    let mut made = made.into_iter();
    for state in states {
        if let LayerState::Recurrent(state) = state {
            (state.conv_tail, state.state) = (made.next(), made.next());
        }
    }
    Ok(made.next().expect("a pass gives hidden states"))
}
