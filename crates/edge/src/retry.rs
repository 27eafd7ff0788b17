//! What may be sent again after a failure, so that no request is carried out twice that must not be. Pure;
//! called by `proxy`.
//!
//! Nothing of the request reached the instance: any request. Something may have: only methods that are
//! idempotent (RFC 9110 section 9.2.2), with the whole body at hand and no byte of a response seen.

use hyper::Method;

/// A request that breaks every instance it meets must not be carried through all of them.
const REACHED_MAX: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    Nothing,
    Perhaps,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Again,
    GiveUp,
}

/// The failures of one request so far.
#[derive(Debug)]
pub struct Retries {
    repeatable: bool,
    reached: u32,
}

impl Retries {
    /// `whole`: the body is at hand and can be sent again.
    pub fn new(method: &Method, whole: bool) -> Retries {
        Retries { repeatable: whole && is_idempotent(method), reached: 0 }
    }

    /// May it be sent again although an instance may have it?
    pub fn is_repeatable(&self) -> bool {
        self.repeatable && self.reached + 1 < REACHED_MAX
    }

    pub fn after(&mut self, reached: Reached) -> Next {
        let again = reached == Reached::Nothing || self.is_repeatable();
        if reached == Reached::Perhaps {
            self.reached += 1;
        }
        if again { Next::Again } else { Next::GiveUp }
    }
}

fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE].contains(method)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_that_may_have_reached_an_instance_is_never_sent_again() {
        let mut post = Retries::new(&Method::POST, true);
        for _ in 0..100 {
            assert_eq!(post.after(Reached::Nothing), Next::Again);
        }
        assert_eq!(post.after(Reached::Perhaps), Next::GiveUp);
    }

    #[test]
    fn a_get_is_sent_to_three_instances_at_most() {
        let mut get = Retries::new(&Method::GET, true);
        assert_eq!(get.after(Reached::Perhaps), Next::Again);
        assert_eq!(get.after(Reached::Nothing), Next::Again);
        assert_eq!(get.after(Reached::Perhaps), Next::Again);
        assert_eq!(get.after(Reached::Perhaps), Next::GiveUp);
    }

    #[test]
    fn a_body_that_streamed_is_not_sent_again() {
        let mut put = Retries::new(&Method::PUT, false);
        assert_eq!(put.after(Reached::Nothing), Next::Again);
        assert_eq!(put.after(Reached::Perhaps), Next::GiveUp);
    }
}
