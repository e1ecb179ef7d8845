//! Stage 3: events on disk until the collector has them.
//!
//! SQLite, WAL, `synchronous=FULL`, one owner thread, group commit. Others hold a handle to its bounded queue.
