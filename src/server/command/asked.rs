//! Who answers a command: the server that runs, through its own socket; with none running, the same
//! service in this process, which holds the data directory meanwhile.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, task::JoinSet};
use tonic::transport::{Channel, Endpoint};

use super::{At, CommandError, not_secured};
use crate::{
    server::{
        admin_api::AdminApi,
        administration::Administration,
        audit::Audit,
        authority::Authority,
        config::{Args, Config, PKI, SOCKET},
        data_dir::DataDir,
        gate::Caller,
        store,
        tls::{ServerTlsError, Tls},
    },
    settings::ConfigError,
    wire::proto::{admin_client::AdminClient, admin_server::AdminServer},
};

impl At {
    pub(super) fn config(&self) -> Result<Config, ConfigError> {
        let args = Args {
            data_dir: self.data_dir.clone(),
            store: self.store.clone(),
            config: self.config.clone(),
            // What is asked here reaches nobody.
            insecure: None,
            ..Default::default()
        };
        Config::new(args)
    }
}

/// The service that is asked, and what it takes while it is.
pub(super) struct Asked {
    pub(super) client: AdminClient<Channel>,
    /// With no server running: the lock, and the service in this process.
    _here: Option<(DataDir, JoinSet<()>)>,
}

impl Asked {
    pub(super) async fn of(at: &At) -> Result<Self, CommandError> {
        let config = at.config()?;
        let socket = config.data_dir.join(SOCKET);
        match UnixStream::connect(&socket).await {
            Ok(stream) => Ok(Self { client: client(stream).await?, _here: None }),
            Err(err)
                if matches!(
                    err.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                Self::here(&config).await
            }
            Err(err) => Err(CommandError::Socket(format!("{}: {err}", socket.display()))),
        }
    }

    async fn here(config: &Config) -> Result<Self, CommandError> {
        if !config.data_dir.is_dir() {
            let text = format!("there is no data directory {}", config.data_dir.display());
            return Err(ConfigError::from(text).into());
        }
        let data_dir = DataDir::open(&config.data_dir)?;
        let tls = open_tls(config)?.ok_or_else(not_secured)?;
        let records = store::open(&config.store).await?;
        let administration = Arc::new(Administration {
            credentials: records.credentials,
            coordinator: None,
            tls: Some(Arc::new(tls)),
        });
        let service = AdminServer::with_interceptor(
            AdminApi::new(administration, Some(Audit::open(&config.data_dir)?)),
            |mut request: tonic::Request<()>| {
                request.extensions_mut().insert(Caller::Owner);
                Ok(request)
            },
        );
        let (ours, theirs) =
            UnixStream::pair().map_err(|err| CommandError::Socket(err.to_string()))?;
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let once = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
            let served = tonic::transport::Server::builder().add_service(service);
            if let Err(err) = served.serve_with_incoming(once).await {
                tracing::error!(error = %err, "could not serve this command");
            }
        });
        Ok(Self { client: client(ours).await?, _here: Some((data_dir, serving)) })
    }
}

/// Opens what TLS is spoken with; `None` if this server has no authority.
pub fn open_tls(config: &Config) -> Result<Option<Tls>, ServerTlsError> {
    let pki = config.data_dir.join(PKI);
    match Authority::open(&pki)? {
        Some(authority) => Tls::open(pki, authority, config.own_certificate.clone()).map(Some),
        None => Ok(None),
    }
}

async fn client(stream: UnixStream) -> Result<AdminClient<Channel>, CommandError> {
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().map(TokioIo::new);
        std::future::ready(stream.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)))
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector(connector)
        .await
        .map_err(|err| CommandError::Socket(err.to_string()))?;
    Ok(AdminClient::new(channel))
}
