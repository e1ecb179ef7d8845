//! The messages of `proto/vidette.proto`, as `prost` generates them, and small conversions on them.

#![allow(missing_docs, unreachable_pub, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/vidette.v1.rs"));
