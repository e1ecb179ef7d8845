//! Stage 5: batches from agents, acknowledgements back.

/// What an agent may say, and what is answered. Pure.
pub mod session;
