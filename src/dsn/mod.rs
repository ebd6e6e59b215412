//! What a connection string means. Pure: no I/O, no environment, no libpq.
