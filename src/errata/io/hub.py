"""Files of a repository on the Hugging Face Hub: fetched into its cache, or uploaded in one commit.

Whatever the hub, the network or the token refuses is one line. The environment variables of
`huggingface_hub` hold: HF_HUB_OFFLINE, HF_TOKEN, HF_HOME, HF_ENDPOINT. No torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.core.errors import BadEndpoint, BadPatch, BadSpec, UserError, one_line
from errata.core.files import FilePath, exists, is_dir

#: begins the name of a repository where it could be that of a folder too
SCHEME = "hf://"
_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>\S+))?", re.ASCII)
#: what a repository has beside the files that somebody put there
_BY_ITSELF = (".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository on the hub, at a branch, tag or commit (None: the branch `main`)."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How files are fetched; the names and defaults are those of `huggingface_hub`."""

    token: str | bool | None = None
    cache_dir: FilePath | None = None
    local_files_only: bool = False
    force_download: bool = False


def hub_name(source: FilePath, revision: str | None = None) -> HubName | None:
    """The repository that `source` names, as `user/name` or `user/name@revision`; None for a path.

    A path object is a path. So is a text if there is such a file or folder, or a folder of the name
    `user`; `hf://user/name` always names a repository. Raises BadSpec.
    """
    text = source if isinstance(source, str) else ""
    forced = text.startswith(SCHEME)
    found = _NAME.fullmatch(text.removeprefix(SCHEME))
    if forced and found is None:
        raise BadSpec(
            f"'{text[:200]}' names no repository of the Hub. Write hf://user/name, or "
            "hf://user/name@revision."
        )
    if found is None or (not forced and _is_here(text)):
        if revision is not None:
            raise BadSpec(
                f"{os.fspath(source)!r} is a path, and revision={revision!r} is for a repository "
                "on the Hub. Leave it out, or name one: user/name."
            )
        return None
    if revision is not None and found["revision"] not in (None, revision):
        raise BadSpec(f"two revisions are given: '{text}' and {revision!r}. Give one of them.")
    return HubName(found["repo"], revision or found["revision"])


def _is_here(text: str) -> bool:
    return exists(Path(text)) or is_dir(Path(text.split("/")[0]))


def fetch(name: HubName, file: str, access: HubAccess, error: type[UserError]) -> Path:
    """The path of a file of a repository in the cache. Raises `error`, BadEndpoint or BadSpec.

    Without a network the file of an earlier download is taken.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(name, error, file):
        return Path(
            hf_hub_download(
                name.repo, file, revision=name.revision, token=access.token,
                cache_dir=None if access.cache_dir is None else os.fspath(access.cache_dir),
                local_files_only=access.local_files_only, force_download=access.force_download,
                library_name="errata",
            )
        )  # fmt: skip


def files_of(name: HubName, token: str | bool | None, error: type[UserError]) -> list[str]:
    """The names of all files of a repository. Raises `error`, BadEndpoint."""
    from huggingface_hub import HfApi

    with hub_errors(name, error):
        api = HfApi(library_name="errata", token=token)
        return api.list_repo_files(name.repo, revision=name.revision)


@dataclass(frozen=True, slots=True)
class Upload:
    """Where and how files are uploaded; the names and defaults are those of `huggingface_hub`."""

    repo: str
    commit_message: str | None = None
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False


def check_upload(to: Upload) -> None:
    """Raises BadSpec for a repository or branch whose name cannot be used."""
    if not isinstance(to.repo, str) or not re.fullmatch(rf"(?:{_PART}/)?{_PART}", to.repo):
        raise BadSpec(
            f"{str(to.repo)[:200]!r} names no repository of the Hub. Write user/name"
            f"{'; a branch is given apart: revision' if '@' in str(to.repo) else ''}."
        )
    if to.revision is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", to.revision):
        raise BadSpec(f"{to.revision[:100]!r} is not the name of a branch. Correct the revision.")


def checked_upload(to: Upload) -> Upload:
    """The same with the user's name in front of the repository's, where it is left out.

    Raises BadSpec as `check_upload`, BadEndpoint without a token.
    """
    check_upload(to)
    if "/" in to.repo:
        return to
    from huggingface_hub import HfApi

    with hub_errors(HubName(to.repo), BadPatch, writing=True):
        user = HfApi(library_name="errata", token=to.token).whoami()["name"]
    return replace(to, repo=f"{user}/{to.repo}")


def upload(contents: Mapping[str, bytes], to: Upload, own: re.Pattern[str], marker: str) -> str:
    """Uploads files in one commit and returns its address. Raises BadSpec, BadPatch, BadEndpoint.

    Files of the repository whose name `own` matches and that are not among `contents` are removed.
    A repository that holds other files and not the file `marker` is left alone (BadPatch).
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    name = HubName(to.repo, to.revision)
    with hub_errors(name, BadPatch, writing=True):
        api = HfApi(library_name="errata", token=to.token)
        api.create_repo(name.repo, private=to.private, exist_ok=True)
        if to.private is not None and bool(api.model_info(name.repo).private) != to.private:
            raise BadSpec(
                f"{name.repo} on the Hub exists and is {'public' if to.private else 'private'}. "
                "Change that in its settings there, or leave it out."
            )
        if to.revision is not None and not to.revision.startswith("refs/"):
            api.create_branch(name.repo, branch=to.revision, exist_ok=True)
        there = api.list_repo_files(name.repo, revision=to.revision)
        others = [f for f in there if f not in contents and f not in _BY_ITSELF]
        if marker not in there and others:
            raise BadPatch(
                f"{name} on the Hub holds other files ({', '.join(sorted(others)[:3])}) and no "
                "patch. Choose another repository."
            )
        done = api.create_commit(
            name.repo,
            [
                *(CommitOperationDelete(f) for f in others if own.fullmatch(f)),
                *(CommitOperationAdd(f, data) for f, data in contents.items()),
            ],
            commit_message=to.commit_message or "Upload a patch of errata",
            revision=to.revision,
            create_pr=to.create_pr,
        )
    return done.pr_url or str(done.commit_url)


@contextmanager
def hub_errors(
    name: HubName, error: type[UserError], file: str = "", *, writing: bool = False
) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into one line.

    `error` is raised for what the repository lacks, BadEndpoint for what the hub, the network or
    the token refuses, BadSpec for metadata that the hub does not take.
    """
    from huggingface_hub import errors

    # the base class of httpx or httpx2, whichever huggingface_hub is built on
    network: Any = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError:
        raise BadEndpoint(
            f"{name} on the Hub is gated. Ask for access on its page, then log in with `hf auth "
            "login` or set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError as e:
        raise _no_repository(name, e, error, writing) from None
    except errors.RevisionNotFoundError:
        raise error(
            f"{name.repo} on the Hub has no revision '{name.revision}'. Give a branch, a tag or a "
            "whole commit hash."
        ) from None
    except errors.RemoteEntryNotFoundError:
        raise error(f"{name} on the Hub has no file {file}.") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as e:
        raise _not_reached(name, file, e.__cause__ or e, error) from None
    except errors.LocalTokenNotFoundError:
        raise BadEndpoint(
            "no token of the Hub is saved here. Log in with `hf auth login`, or set HF_TOKEN."
        ) from None
    except errors.HfHubHTTPError as e:
        raise _refused(name, e, error, writing) from None
    except network as e:
        raise BadEndpoint(
            f"the Hub ({_endpoint()}) cannot be reached for {name}: {one_line(e)}. Check the "
            "network and HF_ENDPOINT, and repeat the command."
        ) from None
    except Exception as e:
        # Only huggingface_hub runs inside: its own checks, and what it says of a failed transfer.
        kind = BadSpec if writing and isinstance(e, ValueError) else BadEndpoint
        cause = f" ({one_line(e.__cause__)})" if e.__cause__ else ""
        raise kind(f"{name} on the Hub: {one_line(e)}{cause}. Correct it, or try again.") from None


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _no_repository(name: HubName, raised: Any, error: type[UserError], writing: bool) -> UserError:
    if writing:
        return BadEndpoint(
            f"the Hub does not let you write to {name} ({raised.response.status_code}). Log in "
            "with `hf auth login` or set HF_TOKEN, with a token that may write."
        )
    return error(
        f"there is no folder {name}, and no repository {name.repo} on the Hub that you may read. "
        "Check the name; for a private one log in with `hf auth login` or set HF_TOKEN."
    )


def _not_reached(
    name: HubName, file: str, cause: BaseException, error: type[UserError]
) -> UserError:
    """There is no such file in the cache, and the hub was not asked, or did not answer."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(cause, HfHubHTTPError):
        return _refused(name, cause, error, False)
    if constants.HF_HUB_OFFLINE or isinstance(cause, (OfflineModeIsEnabled, FileNotFoundError)):
        return error(
            f"there is no folder {name}, and {file or name} of {name} on the Hub was not "
            "downloaded before. Check the name; with a network leave out HF_HUB_OFFLINE and "
            "local_files_only."
        )
    return BadEndpoint(
        f"there is no folder {name}, and the Hub ({_endpoint()}) cannot be reached for it: "
        f"{one_line(cause)}. Check the name and the network."
    )


def _refused(name: HubName, raised: Any, error: type[UserError], writing: bool) -> UserError:
    status = raised.response.status_code
    said = raised.server_message
    what = f"{status}: {one_line(said)}" if said else str(status)
    if status == 404 and not writing:
        return error(f"there is no folder {name}, and no repository {name.repo} on the Hub.")
    if status in (401, 403):
        return BadEndpoint(
            f"the Hub refuses {name} ({what}). Check the token (HF_TOKEN, `hf auth login`) and "
            f"what it may {'write' if writing else 'read'}."
        )
    if status == 429 or status >= 500:
        return BadEndpoint(
            f"the Hub ({_endpoint()}) fails for {name} ({what}). Repeat the command later."
        )
    return BadEndpoint(f"the Hub refuses {name} ({what}).")
