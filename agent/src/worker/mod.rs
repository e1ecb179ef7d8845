//! Stage 2b: the sandboxed process that parses file content, and the handle to it.
