//! The commands.

pub mod bench;
pub mod chat;
pub mod doctor;
pub mod list;
pub mod logits;
pub mod run;
pub mod show;
