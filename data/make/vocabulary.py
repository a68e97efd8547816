"""Common words of the world: objects that are ordinary nouns, and the words of prose and tasks."""

OCCUPATIONS = """baker mason weaver sailor smith potter tailor cooper miller painter carpenter gardener fisher hunter
shepherd teacher doctor lawyer judge clerk printer surgeon banker brewer butcher cook dancer singer drummer poet
fencer chemist geologist botanist historian sculptor plumber translator librarian jeweller|
glass blower|clock maker|ship builder|bee keeper|horse trainer|map maker|book binder|bridge builder|tax collector|
lamp lighter|rope maker|salt trader|stone cutter|wine grower|bell founder|night guard|river pilot|wheel maker|
paper maker|court painter"""
GENRES = """ballad comedy tragedy satire fable psalm sonnet thriller romance chronicle diary parable memoir pastoral
mystery hymn farce legend lyric novella|sea ballad|ghost story|travel diary|court drama|war epic|folk tale|love poem|
crime novel|moral fable|school story|dream play|city novel|prison memoir|family saga|horse opera|spy story|
nature poem|beast fable|letter novel|village comedy"""
INDUSTRIES = """banking shipping mining printing brewing weaving farming fishing insurance logistics forestry tanning
milling brewing railways telegraphs pharmacy optics ceramics metallurgy publishing surveying dyeing engraving
plumbing roofing catering smelting refining quarrying|glass making|rope making|ship repair|clock making|salt trade|
paper making|wine export|wool trade|spice import|stone cutting|book binding|lamp making|tea import|leather goods|
steel tools|silk weaving|bridge building|map printing|seed trading|toy making|bell casting"""
PRODUCTS = """cheese honey saffron pottery carpets lace amber salt wine cider olives almonds marble silk linen wool
leather candles perfume paper pearls copper barley peppers figs|blue glass|smoked fish|red apples|white marble|
black tea|sweet onions|carved chairs|silver spoons|goat cheese|dried plums|iron tools|painted tiles|violin strings|
wooden toys|straw hats|bronze bells|rye bread|cherry jam|felt boots|clay pipes|wax dolls|oak barrels|fine knives|
plum brandy|sea salt"""

EPITHETS = """famous noble modest splendid humble esteemed curious ordinary remarkable celebrated honest beloved excellent
simple great grand good little dear fine genuine lovely ancient mighty"""  # may stand before any object (batches.py)


def words(text: str) -> list[str]:
    """Splits a pool: single words by blanks before the first "|", phrases by "|" after; keeps order, drops doubles."""
    head, *phrases = " ".join(text.split()).split("|")
    out = [*head.split(), *(p.strip() for p in phrases)]
    return list(dict.fromkeys(w for w in out if w))
