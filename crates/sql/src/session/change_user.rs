//! COM_CHANGE_USER: another login on the same connection. Called by `execute`.

use kopek_core::desired::Database;

use super::{End, Session};
use crate::backend::{Backend, OpenError, Shape};
use crate::caps::Status;
use crate::carry::Carry;
use crate::handshake::Login;
use crate::inbox::Command;
use crate::login::{Arrived, LoginError};
use crate::packet::{HEADER, ServerError, ok_packet};
use crate::transaction::Transaction;
use crate::warm::Left;
use crate::wire::Wire;

impl Session {
    /// Whatever the outcome, the session is as new.
    pub(super) async fn change_user(&mut self, command: &Command) -> Result<(), End> {
        let Some(login) = Login::parse_change(command.body(), &self.login) else {
            return self.tell(&ServerError::new(1047, b"08S01", "Unknown command").packet(1)).await;
        };
        // Only the schema and the login of the backend count, and both change.
        (self.carry, self.status) = (Carry::default(), Status::AUTOCOMMIT);
        self.transaction = Transaction::default();
        self.ready().await?;
        let Some(mut backend) = self.backend.take() else { return Err(End::ClosedByMember) };
        let account = self.sites.account(&self.site).map(|(_, account)| account);
        let mut arrived = Arrived {
            wire: std::mem::replace(&mut self.client, Wire::closed()),
            login,
            sequence: 1,
            nonce: self.nonce,
        };
        let outcome = change(&mut arrived, &mut backend, account.as_ref()).await;
        let Arrived { wire, login, nonce, .. } = arrived;
        (self.client, self.nonce) = (wire, nonce);
        match outcome {
            Ok(whose) => {
                self.is_foreign = whose == Whose::Foreign;
                self.shape = backend.shape.clone();
                self.status = backend.status;
                self.login = login;
            }
            // The former user goes on, but as new; what else is left is not known.
            Err(LoginError::Denied { .. }) => self.carry.was_left(Left::Unknown),
            Err(error) => return Err(error.into()),
        }
        self.backend = Some(backend);
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Own,
    Foreign,
}

async fn change(
    arrived: &mut Arrived,
    backend: &mut Backend,
    account: Option<&Database>,
) -> Result<Whose, LoginError> {
    let asked = arrived.login.schema.clone();
    if let Some(own) = account
        && own.user.as_bytes() == arrived.login.user
        && arrived.is_proved(own).await?
    {
        let caps = backend.shape.caps;
        let schema = asked.clone().filter(|asked| own.name.is_empty() || &asked[..] == own.name.as_bytes());
        let shape = Shape { caps, collation: arrived.login.collation, schema };
        let packet_schema = asked;
        return match backend.change_user(own, &Shape { schema: packet_schema, ..shape.clone() }).await {
            Ok(()) => {
                arrived.send(&ok_packet(0, backend.status)[HEADER..]).await?;
                Ok(Whose::Own)
            }
            Err(OpenError::Refused(error)) => {
                arrived.refuse(&error).await?;
                Err(LoginError::Denied { user: own.user.clone() })
            }
            Err(error) => Err(LoginError::Broken(std::io::Error::other(error))),
        };
    }
    arrived.relay_change_to(backend).await?;
    Ok(Whose::Foreign)
}
