from fxlrp.results.ledger import *
