"""Flower's own protocol: the loop of rounds as a strategy for any ServerApp."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from superfednas.flower.prompt_grid import prompt
from superfednas.records.rows import RoundRow, of_kind
from superfednas.server.journal.notices import Telling
from superfednas.server.journal.round_row import round_metrics
from superfednas.server.round.fold import placed
from superfednas.server.round.late import Closing
from superfednas.server.round.orders import RoundPlan
from superfednas.server.strategy import SupernetStrategy


class FlowerStrategy(SupernetStrategy, Strategy):
    """:class:`SupernetStrategy` as a Flower strategy."""

    _asked: tuple[RoundPlan, list[Message]] | None = None  # by configure_train

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 0,
        timeout: float = 0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run like any Flower strategy; the result holds the trained supernet's arrays.

        Flower's own loop would keep every reply in memory until the last has arrived; this one
        folds them as they arrive. ``num_rounds`` and ``timeout`` override the settings if given.
        The settings determine what clients are told, so ``train_config`` and ``evaluate_config``
        must be empty. ``evaluate_fn`` is called at the end of every round.
        """
        if train_config or evaluate_config:
            raise ValueError("the strategy takes its configuration from its settings")
        if num_rounds or timeout:
            self.settings = replace(
                self.settings,
                rounds=num_rounds or self.settings.rounds,
                round_timeout=timeout or self.settings.round_timeout,
            )
            self._beta, self._lr = self.settings.beta(), self.settings.lr()
            self._telling = Telling(self.settings, self.space, self.progress.note)
        self.summary()
        result = Result()
        if evaluate_fn is not None:
            user_fn = evaluate_fn

            def after(row: RoundRow) -> None:
                found = user_fn(row.round, ArrayRecord(self.state))
                if found is not None:
                    result.evaluate_metrics_serverapp[row.round] = found

            self.hooks.append(after)
        state = initial_arrays.to_torch_state_dict()
        self.averaging.adopt(state)
        self.train(prompt(grid), state)
        result.arrays = ArrayRecord(self.state)
        for row in of_kind(self.rows, RoundRow):
            result.train_metrics_clientapp[row.round] = round_metrics(row)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one message per sampled node, with its subnet's weights and its order.

        Raises
        ------
        ValueError
            With ``secure-aggregation``, whose exchanges before and after the training only
            :meth:`start` makes.
        """
        if self._secure is not None:
            raise ValueError("secure-aggregation needs start(): Flower's loop has one exchange")
        self.state = arrays.to_torch_state_dict()
        plan, messages = self._configure(server_round, grid)
        self._asked = plan, messages
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies to :meth:`configure_train`'s messages into the supernet."""
        if self._asked is None or self._asked[0].round != server_round:
            raise ValueError(f"aggregate_train({server_round}) without its configure_train")
        plan, sent = self._asked
        closing = Closing(plan, 0, 0.0, self.settings.round_timeout)
        asked = [message.metadata for message in sent]
        row, _ = self._fold(plan, sent, placed(plan, asked, replies), closing)
        self._record(row)
        return ArrayRecord(self.state), round_metrics(row)

    # Flower's evaluation exchange is not used: it costs seconds per round in deployment.

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: clients evaluate within the training exchange."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing."""
        return None
