//! Stage 4: events to the collector, acknowledgements back.
