//! What the end-to-end tests and the demo story are told with: a rack driven through the command line as a person
//! would, an unmodified WordPress used through its own pages, and visitors who notice everything.

pub mod database;
pub mod editors;
pub mod following;
pub mod html;
pub mod http;
pub mod mediawiki;
pub mod picture;
pub mod probe;
pub mod rack;
pub mod site_db;
pub mod story;
pub mod traces;
pub mod visitors;
pub mod wait;
pub mod wordpress;
