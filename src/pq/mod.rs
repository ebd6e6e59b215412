//! A safe libpq session: the one room with `unsafe`.
