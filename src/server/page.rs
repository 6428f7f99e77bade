//! One page of a list: how much was asked for, where it begins, and the token for the next. It
//! knows neither what is listed nor how that is written.
//!
//! A token is the id of the last that was shown. Where many in a row may not be shown, it is one of
//! those instead, and sealed: only this process can read it.

use std::{any::type_name, fmt::Display, str::FromStr, sync::LazyLock};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};

use super::error::Error;
use crate::{ids::IdError, limits, status::Reason};

/// What a page is asked for with. `Id` orders the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<Id> {
    /// The last of the page before.
    pub after: Option<Id>,
    size: u32,
}

impl<Id: FromStr<Err = IdError> + Display + Clone> Page<Id> {
    /// Reads what an operator sent: no size is the usual one, a large one is cut, and an empty
    /// token is the beginning.
    pub fn parse(size: u32, token: &str) -> Result<Self, Error> {
        let size = if size == 0 { limits::PAGE_SIZE } else { size.min(limits::PAGE_SIZE_MAX) };
        let after = if token.is_empty() { None } else { Some(decode(token)?) };
        Ok(Self { after, size })
    }

    /// Returns what this page shows, and the token of the next one, empty at the end. `read`
    /// returns what follows an id, as many as it is told or fewer at the end; what it returns and
    /// `may_be_shown` denies is passed over, and leaves no trace in either. A page holds less than
    /// it could only where a great many in a row are passed over.
    pub async fn fill<T, F>(
        &self,
        read: impl Fn(Option<Id>, u32) -> F,
        id: impl Fn(&T) -> &Id,
        bytes: impl Fn(&T) -> usize,
        may_be_shown: impl Fn(&T) -> bool,
    ) -> Result<(Vec<T>, String), Error>
    where
        F: Future<Output = Result<Vec<T>, Error>>,
    {
        // One more than is shown, to know whether there is a next page.
        let wanted = usize::try_from(self.size).unwrap_or(usize::MAX).saturating_add(1);
        let mut limit = self.size + 1;
        let (mut items, mut after, mut looked_through) = (Vec::new(), self.after.clone(), 0);
        let is_cut_short = loop {
            let more = read(after, limit).await?;
            let is_end = more.len() < usize::try_from(limit).unwrap_or(usize::MAX);
            looked_through += more.len();
            after = more.last().map(|last| id(last).clone());
            items.extend(more.into_iter().filter(&may_be_shown));
            if is_end || items.len() >= wanted {
                break false;
            }
            if looked_through >= limits::PAGE_LOOKED_THROUGH_MAX {
                break true;
            }
            // What is passed over costs few reads, also for who asks for small pages.
            limit = limits::PAGE_SIZE_MAX + 1;
        };
        let next = self.cut(&mut items, id, bytes);
        match after {
            Some(last) if is_cut_short && next.is_empty() => Ok((items, seal(&last)?)),
            _ => Ok((items, next)),
        }
    }

    /// Leaves in `items` what this page shows, and returns the token of the next page, empty at the
    /// end. A page ends early when it is heavy, so that its message is one that any gRPC client
    /// takes.
    fn cut<T>(
        &self,
        items: &mut Vec<T>,
        id: impl Fn(&T) -> &Id,
        bytes: impl Fn(&T) -> usize,
    ) -> String {
        let mut total = 0_usize;
        let mut fits = |item: &T| {
            total = total.saturating_add(bytes(item));
            total <= limits::PAGE_BYTES_MAX
        };
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        // The first is shown whatever it weighs: a page that shows none would never end.
        let shown = items.iter().take(size).map_while(|item| fits(item).then_some(())).count();
        let shown = shown.max(1);
        if items.len() <= shown {
            return String::new();
        }
        items.truncate(shown);
        items.last().map(|last| encode(id(last))).unwrap_or_default()
    }
}

/// Hexadecimal, so that nobody takes a token for an id, or makes one up.
fn encode(id: &impl Display) -> String {
    hexadecimal(id.to_string().bytes())
}

/// Of this process: what it sealed, the next one cannot read.
static KEY: LazyLock<RandomizedNonceKey> = LazyLock::new(|| {
    let mut key = [0; 32];
    rand::fill(&mut key).expect("the system has randomness");
    RandomizedNonceKey::new(&AES_256_GCM, &key).expect("32 bytes are a key")
});

/// What a sealed token begins with; no hexadecimal digit.
const SEALED: &str = "s";

/// Ids are filled up to so many bytes, so that the length of a token does not tell theirs.
const SEALED_ID_BYTES: usize = 64;
const _: () = assert!(limits::CLIENT_ID_BYTES_MAX < SEALED_ID_BYTES);

/// The list that a sealed token is for.
fn list<Id>() -> Aad<&'static str> {
    Aad::from(type_name::<Id>())
}

/// Hides an id, so that whoever has the token learns nothing of it.
fn seal<Id: Display>(id: &Id) -> Result<String, Error> {
    // No id has a space.
    let mut sealed = format!("{:SEALED_ID_BYTES$}", id.to_string()).into_bytes();
    let nonce = KEY
        .seal_in_place_append_tag(list::<Id>(), &mut sealed)
        .map_err(|_| Error::Internal("could not seal a page token".to_owned()))?;
    let bytes = nonce.as_ref().iter().chain(&sealed).copied();
    Ok(SEALED.to_owned() + &hexadecimal(bytes))
}

fn unseal<Id: FromStr<Err = IdError>>(digits: &str) -> Option<Id> {
    let mut bytes = from_hexadecimal(digits)?;
    let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let text = KEY.open_in_place(nonce, list::<Id>(), sealed).ok()?;
    std::str::from_utf8(text).ok()?.trim_end_matches(' ').parse().ok()
}

fn decode<Id: FromStr<Err = IdError>>(token: &str) -> Result<Id, Error> {
    let refused = |text: &str| Error::refused(Reason::InvalidArgument, text);
    if let Some(digits) = token.strip_prefix(SEALED) {
        let text = "the page token is good no longer, or not one of this server's: begin again";
        return unseal(digits).ok_or_else(|| refused(text));
    }
    let text = from_hexadecimal(token).and_then(|bytes| String::from_utf8(bytes).ok());
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| refused("the page token is not one of this server's"))
}

fn hexadecimal(bytes: impl Iterator<Item = u8>) -> String {
    let digits = bytes.flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClientId, TransferId};

    fn ids(count: usize) -> Vec<ClientId> {
        (0..count).map(|n| format!("c{n:06}").parse().expect("an id")).collect()
    }

    /// Reads all pages of a list, and returns what each shows, and its token.
    async fn pages(
        all: &[ClientId],
        may_be_shown: impl Fn(&ClientId) -> bool,
    ) -> Vec<(Vec<ClientId>, String)> {
        let read = async |after: Option<ClientId>, limit: u32| {
            let rest = all.iter().filter(|id| after.as_ref().is_none_or(|after| *id > after));
            Ok(rest.take(limit as usize).cloned().collect())
        };
        let (mut pages, mut token) = (Vec::new(), String::new());
        loop {
            let page = Page::<ClientId>::parse(10, &token).expect("a page");
            let (items, next) = page.fill(read, |id| id, |_| 1, &may_be_shown).await.expect("read");
            assert!(items.len() <= 10);
            pages.push((items, next.clone()));
            if next.is_empty() {
                return pages;
            }
            token = next;
        }
    }

    #[tokio::test]
    async fn pages_follow_each_other_without_gap_or_repetition() {
        let all = ids(25);
        let pages = pages(&all, |_| true).await;
        let seen: Vec<_> = pages.into_iter().flat_map(|(items, _)| items).collect();
        assert_eq!(seen, all);
    }

    #[tokio::test]
    async fn what_may_not_be_shown_is_in_no_page_and_in_no_token() {
        let all = ids(3 * limits::PAGE_LOOKED_THROUGH_MAX);
        // Twelve at the beginning, one far on, and a few at the end.
        let last = all.len() - 3;
        let shown = |id: &ClientId| {
            let at = all.binary_search(id).expect("one of them");
            at.is_multiple_of(2) && at < 24 || at == 15_000 || at >= last
        };

        let pages = pages(&all, shown).await;

        let seen: Vec<_> = pages.iter().flat_map(|(items, _)| items.clone()).collect();
        assert_eq!(seen, all.iter().filter(|id| shown(id)).cloned().collect::<Vec<_>>());
        assert!(pages.len() < 6, "{}", pages.len());
        let (sealed, plain): (Vec<_>, Vec<_>) = pages
            .iter()
            .filter(|(_, token)| !token.is_empty())
            .partition(|(_, t)| t.starts_with(SEALED));
        assert!(!sealed.is_empty() && !plain.is_empty());
        for (items, token) in plain {
            assert_eq!(Some(&decode::<ClientId>(token).expect("an id")), items.last());
        }
        for (_, token) in sealed {
            let text = from_hexadecimal(&token[1..]).expect("digits");
            assert_eq!(text.len(), NONCE_LEN + SEALED_ID_BYTES + 16);
            assert!(!String::from_utf8_lossy(&text).contains("c0"));
        }
    }

    #[tokio::test]
    async fn a_small_page_costs_few_reads() {
        let all = ids(limits::PAGE_LOOKED_THROUGH_MAX);
        let reads = std::cell::Cell::new(0);
        let read = async |after: Option<ClientId>, limit: u32| {
            reads.set(reads.get() + 1);
            let rest = all.iter().filter(|id| after.as_ref().is_none_or(|after| *id > after));
            Ok(rest.take(limit as usize).cloned().collect())
        };
        let page = Page::<ClientId>::parse(1, "").expect("a page");

        let last = all.last().expect("many");
        let (items, _) = page.fill(read, |id| id, |_| 1, |id| id == last).await.expect("read");

        assert_eq!(items, std::slice::from_ref(last));
        assert!(reads.get() < 50, "{} reads", reads.get());
    }

    #[test]
    fn a_sealed_token_is_good_for_its_list_and_only_as_it_was_made() {
        let id: ClientId = "a".parse().expect("an id");
        let token = seal(&id).expect("sealed");
        assert_eq!(decode::<ClientId>(&token).ok(), Some(id));
        let uuid = TransferId::generate();
        let other = seal(&uuid).expect("sealed");
        assert_eq!(decode::<TransferId>(&other).ok(), Some(uuid));
        let changed =
            token.replace(&token[40..42], if &token[40..42] == "00" { "01" } else { "00" });
        for bad in [&other, &changed, &token[..30], "s", "sz"] {
            let err = decode::<ClientId>(bad).expect_err("refused");
            assert_eq!(err.reason(), Reason::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn a_full_last_page_has_no_token() {
        let page = Page::<ClientId>::parse(10, "").expect("a page");
        let mut items = ids(10);
        assert_eq!(page.cut(&mut items, |id| id, |_| 1), "");
        assert_eq!(items.len(), 10);
    }

    #[test]
    fn a_heavy_page_ends_early_but_never_empty() {
        let page = Page::<ClientId>::parse(10, "").expect("a page");
        let mut items = ids(10);
        let token = page.cut(&mut items, |id| id, |_| limits::PAGE_BYTES_MAX / 3);
        assert_eq!(items.len(), 3);
        assert_ne!(token, "");

        let mut items = ids(10);
        page.cut(&mut items, |id| id, |_| limits::PAGE_BYTES_MAX + 1);
        assert_eq!(items.len(), 1);
    }

    #[test]
    fn sizes_are_bounded() {
        let size = |size| Page::<TransferId>::parse(size, "").map(|page| page.size);
        assert_eq!(size(0).ok(), Some(limits::PAGE_SIZE));
        assert_eq!(size(1).ok(), Some(1));
        assert_eq!(size(u32::MAX).ok(), Some(limits::PAGE_SIZE_MAX));
    }

    #[test]
    fn a_token_that_is_not_ours_is_refused() {
        let own = encode(&TransferId::generate());
        assert!(Page::<TransferId>::parse(0, &own).is_ok());
        let upper = encode(&"X".repeat(100_000));
        for bad in ["x", "zz", "6", "é", "ff", "2f", &own[1..], &upper, &"0".repeat(100)] {
            let err = Page::<TransferId>::parse(0, bad).expect_err("refused");
            assert_eq!(err.reason(), Reason::InvalidArgument, "{bad}");
        }
    }
}
