//! Names of files that try to do harm, for every output.
