//! The commands.

pub mod bench;
pub mod cache;
pub mod chat;
pub mod doctor;
pub mod list;
pub mod logits;
pub mod ps;
pub mod pull;
pub mod quantize;
pub mod rm;
pub mod run;
pub mod serve;
pub mod show;
pub mod stop;
