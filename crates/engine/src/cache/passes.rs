//! Passes through a model's layers with as little work of the host as there can be.
//!
//! On CUDA a pass is hundreds of launches, and building their graph takes longer than they do. A
//! pass that decodes makes the same launches as the one before it: it is recorded, and run again
//! over the arrays that differ. Recordings are kept by the shapes of these arrays. None is used
//! again before the graph was built twice and was the same, with nothing in it that was made anew.

use std::collections::HashMap;

use mlx::{Array, Backend, Device, Recording};
use models::{LayerState, Loaded, Step};

use crate::Result;

/// Recordings that are kept. Each batch size has one for every length of block tables.
const MAX_KNOWN: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Passes {
    known: HashMap<Vec<i32>, Known>,
    n_passes: u64,
}

/// A pass that was run before.
#[derive(Debug)]
struct Known {
    state: State,
    last_use: u64,
}

#[derive(Debug)]
enum State {
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
        self.n_passes += 1;
        let before = self.known.get_mut(&key).map(|known| {
            known.last_use = self.n_passes;
            &known.state
        });
        if let Some(State::Proven(recording)) = before {
            return keep(recording.run(&sources)?, states);
        }
        let hidden = loaded.model.through_layers(&embedded, step, states)?;
        let state = match before {
            Some(State::Unfit) => State::Unfit,
            before => match (Recording::of(made(&hidden, states), &sources)?, before) {
                (None, _) => State::Unfit,
                (Some(now), Some(State::Built(before))) if now.is_same(before) => {
                    State::Proven(now)
                }
                (Some(now), _) => State::Built(now),
            },
        };
        let joined = match &state {
            State::Built(recording) | State::Proven(recording) => recording.run(&sources)?,
            State::Unfit => mlx::joined(made(&hidden, states))?,
        };
        self.remember(key, state);
        keep(joined, states)
    }

    /// In place of the one that was not used for longest, if there are too many.
    fn remember(&mut self, key: Vec<i32>, state: State) {
        if self.known.len() >= MAX_KNOWN && !self.known.contains_key(&key) {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.last_use);
            let oldest = oldest.map(|(key, _)| key.clone());
            self.known.remove(&oldest.expect("there are some"));
        }
        self.known.insert(key, Known { state, last_use: self.n_passes });
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
