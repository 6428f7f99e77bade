//! The files of an authority: written whole, by rename, 0600, and read back as what they are.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{AuthorityError, identity};
use crate::server::landing::make_private_dir;

pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    /// Makes the directory, which must not hold an authority.
    pub(super) fn create(dir: &Path) -> Result<Self, AuthorityError> {
        make_private_dir(dir)
            .map_err(|source| AuthorityError::Io { path: dir.to_owned(), source })?;
        let files = Self::open(dir);
        if files.read_if_there("names")?.is_some() {
            return Err(AuthorityError::Exists(files.path("names")));
        }
        Ok(files)
    }

    pub(super) fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// By rename, so that whoever reads it sees the old one or the new one.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), AuthorityError> {
        let path = self.path(name);
        let failed = |source| AuthorityError::Io { path: path.clone(), source };
        let temporary = self.path(&format!("{name}.new"));
        match fs::remove_file(&temporary) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(failed(err)),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    pub(super) fn write_certificates(
        &self,
        name: &str,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), AuthorityError> {
        let pem = |der: &CertificateDer<'_>| pem::Pem::new("CERTIFICATE", der.to_vec());
        let text = pem::encode_many(&chain.iter().map(pem).collect::<Vec<_>>());
        self.write(name, text.as_bytes())
    }

    /// Writes a key and the chain of its certificate, so that whatever a crash leaves of it fits:
    /// the chain waits under another name until its key is there, and [`Self::settle`] ends it.
    pub(super) fn write_pair(
        &self,
        (key_name, key): (&str, &KeyPair),
        (name, chain): (&str, &[CertificateDer<'_>]),
    ) -> Result<(), AuthorityError> {
        self.write_certificates(&next(name), chain)?;
        self.write(key_name, key.serialize_pem().as_bytes())?;
        self.settle(key_name, name)
    }

    /// Ends a [`Self::write_pair`] that a crash broke off after its key was written.
    pub(super) fn settle(&self, key_name: &str, name: &str) -> Result<(), AuthorityError> {
        if self.read_if_there(&next(name))?.is_none() {
            return Ok(());
        }
        let leaf = self.certificates(&next(name))?.swap_remove(0);
        let key = self.key(key_name)?;
        if identity::public_key(&leaf).ok() != Some(key.subject_public_key_info()) {
            // Its key was not written yet: the pair before is whole.
            return Ok(());
        }
        let path = self.path(name);
        match fs::rename(self.path(&next(name)), &path) {
            // Somebody else who opened it was first.
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(AuthorityError::Io { path, source }),
            Ok(()) => {
                let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
                synced.map_err(|source| AuthorityError::Io { path, source })
            }
        }
    }

    pub(super) fn read_if_there(&self, name: &str) -> Result<Option<String>, AuthorityError> {
        match fs::read_to_string(self.path(name)) {
            Ok(text) => Ok(Some(text)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AuthorityError::Io { path: self.path(name), source }),
        }
    }

    /// Returns the certificates of a file; at least one.
    pub(super) fn certificates(
        &self,
        name: &str,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let text = self.read(name)?;
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let read = read.map_err(|err| self.damaged(name, &format!("{err:?}")))?;
        if read.is_empty() {
            return Err(self.damaged(name, "it holds no certificate"));
        }
        Ok(read)
    }

    pub(super) fn key(&self, name: &str) -> Result<KeyPair, AuthorityError> {
        let text = self.read(name)?;
        // What the parser says could quote the key.
        KeyPair::from_pem(&text).map_err(|_| self.damaged(name, "it holds no key"))
    }

    pub(super) fn read(&self, name: &str) -> Result<String, AuthorityError> {
        let text = self.read_if_there(name)?;
        text.ok_or_else(|| AuthorityError::Io {
            path: self.path(name),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    pub(super) fn damaged(&self, name: &str, reason: &str) -> AuthorityError {
        AuthorityError::Damaged { path: self.path(name), reason: reason.to_owned() }
    }
}

fn next(name: &str) -> String {
    format!("{name}.next")
}
