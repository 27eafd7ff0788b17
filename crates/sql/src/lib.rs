//! What an instance finds as its MySQL: relays to the site's writer and follows it.
