"""Secrets: what is saved or printed shows that there was one, never what it was.

A secret is the value of a key that says so (password, api_key, hf_token …), the user in a URL, the signature
in its query, or a text that has the form of a well-known token. None belongs into a config: buckets take
theirs from the environment.
"""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[redacted]"

# The end of a key's name.
_NAME = (
    r"(?:token|secret|password|passwd|passphrase|credentials?|api[_-]?key|access[_-]?key(?:[_-]?id)?"
    r"|(?:secret|private|account|wandb)[_-]?key)"
)
_KEY = re.compile(rf"{_NAME}$", re.IGNORECASE)
_VALUE = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,;&'"()]+)"""
_PAIR = re.compile(rf"""({_NAME}['"]?\s*(?:=|:(?=\s*['"]))\s*){_VALUE}(?: -> {_VALUE})?""", re.IGNORECASE)
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://)[^\s/@'\"]+@", re.IGNORECASE)
_QUERY = re.compile(
    rf"([?&](?:x-(?:amz|goog)-[\w-]+|sig|signature|key|awsaccesskeyid|googleaccessid|[\w-]*{_NAME})=)[^&\s'\"#]+",
    re.IGNORECASE,
)
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"  # Hugging Face, GitHub, GitLab
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"  # AWS, Google
    r"|eyJ[\w-]{8,2000}\.[\w-]+(?:\.[\w-]*)?|sk-(?:[a-z]+-)?[A-Za-z0-9]{32,}|xox[abprs]-[\w-]{10,}"  # JWT, OpenAI, Slack
    r")|-----BEGIN[ A-Z]*PRIVATE KEY-----.*?(?:-----END[ A-Z]*PRIVATE KEY-----|$)",
    re.DOTALL,
)
_WANDB = re.compile(r"((?:wandb|key)[\w.-]{0,40}['\"]?\s*[=:]\s*['\"]?)[0-9a-f]{40}\b", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with each secret in it as HIDDEN; the same text if there is none."""
    for pattern, end in ((_PAIR, ""), (_USER, "@"), (_QUERY, ""), (_WANDB, "")):
        text = pattern.sub(rf"\g<1>{HIDDEN}{end}", text)
    return _FORMS.sub(HIDDEN, text)


def redacted(value: Any, secret: bool = False) -> Any:
    """Nested dicts, lists and tuples with each secret in them as HIDDEN; equal to `value` if there is none.

    Args:
        secret: whether it stands below a key that names a secret.
    """
    if isinstance(value, Mapping):
        return {
            redact(str(key)): redacted(_beside(key, each), secret or _is_secret(key)) for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(redacted(each, secret) for each in value)
    if secret and not isinstance(value, bool) and value not in (None, ""):
        return HIDDEN
    return redact(value) if isinstance(value, str) else value


def _is_secret(key: Any) -> bool:
    return isinstance(key, str) and _KEY.search(key) is not None


def _beside(key: Any, value: Any) -> Any:
    """Weights & Biases' keys are known by the key that they stand beside only."""
    return HIDDEN if isinstance(value, str) and _WANDB.fullmatch(f"{key}={value}") else value
