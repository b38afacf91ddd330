//! Flows as written.
