//! Stage 2: what to scan and when; verdicts become events.
