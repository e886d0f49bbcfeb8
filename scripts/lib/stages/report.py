"""The report and the cards of a model. They describe other artifacts, and take seconds."""

from lib.record.bound import Bound
from lib.stages.stage import Cost, Memory, Stage


class ReportStage(Stage):
    """A table, a plot and a page."""

    rule = "report"
    column = "report"
    memory = Memory(1500)
    cost = Cost(2, 0)  # of the forms it reads the records alone
    typical = 40_000


class CardStage(Stage):
    """A model card."""

    rule = "card"
    bound = Bound.ANYWHERE
    column = "report"
    cost = ReportStage.cost
    typical = 4_000


STAGES = (ReportStage(), CardStage())
