"""What the page cache has got of a file, and what it means when some of it is read again.

A block whose bytes were all read is the kernel's: it is not fetched ahead again. When a reader
comes for such a block once more, the kernel has let go of it, but of how much else nobody knows.
So the one idea: every block that is read again is evidence, and buys one guess that a block next
to it has gone too. What is fetched in vain is never more than what was asked for; a reader that
goes through all of the file once more doubles its lead with each round trip; and past a quarter of
the file the rest is taken for gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

WANTED, CONSUMED, GUESSED, REREAD, AGAIN = range(5)
"""A block's mark: not read yet · read to its end · taken for gone · being read once more · read to
its end once more."""

_NEXT_PASS = bytes([WANTED, WANTED, WANTED, WANTED, CONSUMED]) + bytes(251)

PASS_FRACTION = 4
"""A new pass begins once more than a quarter of the file was read again: from then on, fetching it
whole wastes at most three times the evidence, and not doing so costs a round trip per stream."""


class Consumed:
    """The marks of one file's blocks.

    The mutable state of Consumed is the marks, how many say REREAD or AGAIN (`evidence`), how many
    say GUESSED (`guesses`), and how many blocks were read since the file was opened (`progress`).
    INVARIANT: guesses <= evidence at the time of the guess, so wrong ones never outnumber it.
    """

    def __init__(self, blocks: int) -> None:
        self.marks = bytearray(blocks)
        self.evidence = 0
        self.guesses = 0
        self.progress = 0

    def __contains__(self, block: int) -> bool:
        """Whether the block is the kernel's: it is not worth fetching ahead."""
        return self.marks[block] in (CONSUMED, AGAIN)

    def known(self) -> bool:
        """Whether any of the file is known to be with the kernel."""
        return any(self.marks)

    def count(self) -> int:
        """How many blocks are the kernel's."""
        return self.marks.count(CONSUMED) + self.marks.count(AGAIN)

    def mark(self, block: int) -> None:
        """The block's last byte went to a reader, or all of it into the page cache."""
        before = self.marks[block]
        if before in (CONSUMED, AGAIN):
            return
        if before == GUESSED:
            self.guesses -= 1
        self.marks[block] = AGAIN if before == REREAD else CONSUMED

    def read(self, blocks: Iterable[int], has: Callable[[int], bool]) -> int:
        """A READ for `blocks` came in; how many of them are news of the kernel having let go.

        `has` tells which blocks are here or on their way.
        """
        news = 0
        marks = self.marks
        for block in blocks:
            if marks[block] == GUESSED:
                self.guesses -= 1
            elif block not in self or has(block):
                continue
            else:
                self.evidence -= marks[block] == AGAIN  # counted before
            marks[block] = REREAD
            self.evidence += 1
            news += 1
        return news

    def guess(self, blocks: Iterable[int]) -> bool:
        """Take `blocks` for gone, nearest first, as far as the evidence goes; whether any was."""
        guessed = False
        for block in blocks:
            if self.guesses >= self.evidence:
                break
            if block in self:
                self.evidence -= self.marks[block] == AGAIN
                self.marks[block] = GUESSED
                self.guesses += 1
                guessed = True
        return guessed

    def is_pass(self) -> bool:
        """Whether so much was read again that the rest of the file is taken for gone."""
        return self.evidence * PASS_FRACTION > len(self.marks)

    def begin_pass(self) -> None:
        """Want everything once more, but for what has just been read again."""
        self.marks = self.marks.translate(_NEXT_PASS)
        self.evidence = self.guesses = 0
