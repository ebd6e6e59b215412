//! The processes that serve the queue: who is alive, what the dead left, what waits where, and how they tell one another.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`workers`] | the list of the living, and their beats |
//! | [`sightings`] | who was seen to beat, and who is dead |
//! | [`orphans`] | what the dead left behind |
//! | [`health`] | how this process does |
//! | [`clock`] | the database's clock, as far as a step of it is believed |
//! | [`queues`] | queues paused and served again |
//! | [`overview`] | who serves, what waits, what nobody serves |
//! | [`signals`] | hints within and between processes |

pub mod clock;
pub mod health;
pub mod orphans;
pub mod overview;
pub mod queues;
pub mod sightings;
pub mod signals;
pub mod workers;
