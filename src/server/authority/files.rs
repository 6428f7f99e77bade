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

/// The names of a key, and of the certificates that belong to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    pub(super) key: &'static str,
    pub(super) certificate: &'static str,
}

pub(super) const INTERMEDIATE: Pair =
    Pair { key: "intermediate.key", certificate: "intermediate.pem" };
pub(super) const OLD_INTERMEDIATE: Pair =
    Pair { key: "intermediate.old.key", certificate: "intermediate.old.pem" };
pub(super) const SERVER: Pair = Pair { key: "server.key", certificate: "server.pem" };

const ROOT_KEY: &str = "root.key";

pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    /// Makes an empty directory, which becomes `dir` at [`Self::end`]. What an earlier one left
    /// behind, which never ended, is removed.
    pub(super) fn begin(dir: &Path) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError::Io { path: dir.to_owned(), source };
        let is_taken = match fs::read_dir(dir) {
            Ok(mut entries) => entries.next().is_some(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => dir.is_symlink(),
            Err(err) if err.kind() == io::ErrorKind::NotADirectory => true,
            Err(err) => return Err(failed(err)),
        };
        if is_taken {
            return Err(AuthorityError::Exists(dir.to_owned()));
        }
        let mut begun = dir.as_os_str().to_owned();
        begun.push(".new");
        let files = Self { dir: begun.into() };
        match fs::remove_dir_all(&files.dir) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(failed(err)),
            _ => {}
        }
        make_private_dir(&files.dir).map_err(failed)?;
        Ok(files)
    }

    /// Gives the directory its name.
    pub(super) fn end(self, dir: &Path) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError::Io { path: dir.to_owned(), source };
        self.about_to_change()?;
        fs::rename(&self.dir, dir).map_err(failed)?;
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
        Ok(Self::open(dir))
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
        self.about_to_change()?;
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
        self.sync()
    }

    fn sync(&self) -> Result<(), AuthorityError> {
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| AuthorityError::Io { path: self.dir.clone(), source })
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
        pair: Pair,
        key: &KeyPair,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), AuthorityError> {
        self.write_certificates(&next(pair.certificate), chain)?;
        self.write(pair.key, key.serialize_pem().as_bytes())?;
        self.settle(pair)
    }

    /// Ends a [`Self::write_pair`] that a crash broke off after its key was written.
    pub(super) fn settle(&self, pair: Pair) -> Result<(), AuthorityError> {
        let waiting = next(pair.certificate);
        if self.read_if_there(&waiting)?.is_none() || self.read_if_there(pair.key)?.is_none() {
            return Ok(());
        }
        let leaf = self.certificates(&waiting)?.swap_remove(0);
        let key = self.key(pair.key)?;
        if identity::public_key(&leaf).ok() != Some(key.subject_public_key_info()) {
            // Its key was not written yet: the pair before is whole.
            return Ok(());
        }
        self.end_write(pair.certificate)
    }

    /// The key of a root that signs nothing yet: it waits until that is the current one.
    pub(super) fn write_root_key(&self, pem: &str) -> Result<(), AuthorityError> {
        self.write(&next(ROOT_KEY), pem.as_bytes())
    }

    /// Puts the key that waits into its place, if it is the current root's.
    pub(super) fn settle_root_key(&self, root: &CertificateDer<'_>) -> Result<(), AuthorityError> {
        if self.read_if_there(&next(ROOT_KEY))?.is_none() {
            return Ok(());
        }
        let key = self.key(&next(ROOT_KEY))?;
        if identity::public_key(root).ok() != Some(key.subject_public_key_info()) {
            return Ok(());
        }
        self.end_write(ROOT_KEY)
    }

    fn end_write(&self, name: &str) -> Result<(), AuthorityError> {
        self.about_to_change()?;
        let path = self.path(name);
        match fs::rename(self.path(&next(name)), &path) {
            // Somebody else who opened it was first.
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(AuthorityError::Io { path, source }),
            Ok(()) => self.sync(),
        }
    }

    /// The key last: a certificate without one would be damage.
    pub(super) fn remove(&self, pair: Pair) -> Result<(), AuthorityError> {
        for name in [pair.certificate, pair.key] {
            self.about_to_change()?;
            let path = self.path(name);
            match fs::remove_file(&path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(AuthorityError::Io { path, source }),
                Ok(()) => self.sync()?,
            }
        }
        Ok(())
    }

    /// Tests break off here.
    #[cfg_attr(not(test), allow(clippy::unused_self, clippy::unnecessary_wraps))]
    fn about_to_change(&self) -> Result<(), AuthorityError> {
        #[cfg(test)]
        super::tests::crash_here()
            .map_err(|source| AuthorityError::Io { path: self.dir.clone(), source })?;
        Ok(())
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
