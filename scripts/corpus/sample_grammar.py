"""The small German-English lexicon and grammar that make_sample.py draws the sample corpus from.

It knows the forms of words, and writes phrases and clauses in both languages.
"""

from __future__ import annotations

from dataclasses import dataclass

CASES = ("nom", "acc", "dat")

# Nouns

# Each noun is "singular,plural,gender,English[,English plural]". The plural of a mass noun is "-".
# The gender of a weak noun (n-declension) ends in "w".
NOUN_ROWS = {
    "person": """Mann,Männer,m,man,men Frau,Frauen,f,woman,women Lehrer,Lehrer,m,teacher
        Ärztin,Ärztinnen,f,doctor Bäcker,Bäcker,m,baker Köchin,Köchinnen,f,cook
        Richterin,Richterinnen,f,judge Sängerin,Sängerinnen,f,singer Malerin,Malerinnen,f,painter
        Student,Studenten,mw,student Polizist,Polizisten,mw,policeman,policemen
        Bauer,Bauern,mw,farmer Nachbar,Nachbarn,mw,neighbor Kollege,Kollegen,mw,colleague
        Freund,Freunde,m,friend Gast,Gäste,m,guest Fahrer,Fahrer,m,driver Gärtner,Gärtner,m,gardener
        Schneiderin,Schneiderinnen,f,tailor Anwalt,Anwälte,m,lawyer Matrose,Matrosen,mw,sailor
        Tänzerin,Tänzerinnen,f,dancer Kellnerin,Kellnerinnen,f,waitress,waitresses
        Dichter,Dichter,m,poet Reporterin,Reporterinnen,f,reporter""",
    "kin": """Vater,Väter,m,father Mutter,Mütter,f,mother Bruder,Brüder,m,brother
        Schwester,Schwestern,f,sister Sohn,Söhne,m,son Tochter,Töchter,f,daughter
        Onkel,Onkel,m,uncle Tante,Tanten,f,aunt Großvater,Großväter,m,grandfather
        Großmutter,Großmütter,f,grandmother""",
    "child": "Kind,Kinder,n,child,children Junge,Jungen,mw,boy Mädchen,Mädchen,n,girl",
    "animal": """Hund,Hunde,m,dog Katze,Katzen,f,cat Pferd,Pferde,n,horse Vogel,Vögel,m,bird
        Kuh,Kühe,f,cow Maus,Mäuse,f,mouse,mice Hase,Hasen,mw,rabbit Esel,Esel,m,donkey
        Ente,Enten,f,duck Ziege,Ziegen,f,goat Huhn,Hühner,n,chicken""",
    "dish": """Kuchen,Kuchen,m,cake Ei,Eier,n,egg Salat,Salate,m,salad Fisch,Fische,m,fish,fish
        Suppe,Suppen,f,soup Wurst,Würste,f,sausage Pfannkuchen,Pfannkuchen,m,pancake""",
    "fruit": """Apfel,Äpfel,m,apple Birne,Birnen,f,pear Banane,Bananen,f,banana
        Kirsche,Kirschen,f,cherry,cherries""",
    "veg": """Tomate,Tomaten,f,tomato,tomatoes Kartoffel,Kartoffeln,f,potato,potatoes""",
    "staple": """Brot,-,n,bread Käse,-,m,cheese Reis,-,m,rice Fleisch,-,n,meat
        Schokolade,-,f,chocolate""",
    "drink": """Milch,-,f,milk Wasser,-,n,water Tee,-,m,tea Kaffee,-,m,coffee Saft,-,m,juice
        Limonade,-,f,lemonade""",
    "text": """Buch,Bücher,n,book Brief,Briefe,m,letter Zeitung,Zeitungen,f,newspaper
        Roman,Romane,m,novel Gedicht,Gedichte,n,poem Bericht,Berichte,m,report
        Artikel,Artikel,m,article Nachricht,Nachrichten,f,message Märchen,Märchen,n,fairy_tale
        Tagebuch,Tagebücher,n,diary,diaries Geschichte,Geschichten,f,story,stories""",
    "thing": """Schlüssel,Schlüssel,m,key Lampe,Lampen,f,lamp Regenschirm,Regenschirme,m,umbrella
        Ring,Ringe,m,ring Handy,Handys,n,phone Kamera,Kameras,f,camera Ball,Bälle,m,ball
        Puppe,Puppen,f,doll Messer,Messer,n,knife,knives Gabel,Gabeln,f,fork Löffel,Löffel,m,spoon
        Teller,Teller,m,plate Tasse,Tassen,f,cup Kerze,Kerzen,f,candle Bild,Bilder,n,picture
        Geschenk,Geschenke,n,present Stift,Stifte,m,pen Spiegel,Spiegel,m,mirror
        Landkarte,Landkarten,f,map Computer,Computer,m,computer""",
    "holder": """Kiste,Kisten,f,box,boxes Koffer,Koffer,m,suitcase Flasche,Flaschen,f,bottle
        Tasche,Taschen,f,bag Paket,Pakete,n,package Korb,Körbe,m,basket""",
    "door": "Tür,Türen,f,door Fenster,Fenster,n,window Tor,Tore,n,gate",
    "cloth": """Hut,Hüte,m,hat Mantel,Mäntel,m,coat Jacke,Jacken,f,jacket Hemd,Hemden,n,shirt
    Kleid,Kleider,n,dress,dresses
        Pullover,Pullover,m,sweater Schal,Schals,m,scarf,scarves""",
    "furniture": """Tisch,Tische,m,table Stuhl,Stühle,m,chair Bett,Betten,n,bed Sofa,Sofas,n,sofa
        Schrank,Schränke,m,cupboard Regal,Regale,n,shelf,shelves Teppich,Teppiche,m,carpet""",
    "vehicle": """Auto,Autos,n,car Fahrrad,Fahrräder,n,bicycle Boot,Boote,n,boat
        Motorrad,Motorräder,n,motorcycle""",
    "transit": "Bus,Busse,m,bus,buses Zug,Züge,m,train",
    "instrument": """Gitarre,Gitarren,f,guitar Geige,Geigen,f,violin Klavier,Klaviere,n,piano
        Flöte,Flöten,f,flute Trommel,Trommeln,f,drum""",
    "plant": "Baum,Bäume,m,tree Blume,Blumen,f,flower Rose,Rosen,f,rose",
    "place": """Küche,Küchen,f,kitchen Dorf,Dörfer,n,village Stadt,Städte,f,city,cities
        Keller,Keller,m,cellar Zimmer,Zimmer,n,room Büro,Büros,n,office Museum,Museen,n,museum
        Hotel,Hotels,n,hotel Restaurant,Restaurants,n,restaurant Kirche,Kirchen,f,church,churches
        Theater,Theater,n,theater Bibliothek,Bibliotheken,f,library,libraries
        Krankenhaus,Krankenhäuser,n,hospital Bäckerei,Bäckereien,f,bakery,bakeries
        Fabrik,Fabriken,f,factory,factories Schloss,Schlösser,n,castle Turm,Türme,m,tower
        Haus,Häuser,n,house Bahnhof,Bahnhöfe,m,station Flughafen,Flughäfen,m,airport
        Hafen,Häfen,m,harbor Markt,Märkte,m,market Brücke,Brücken,f,bridge
        Schule,Schulen,f,school""",
    "nature": """Garten,Gärten,m,garden Park,Parks,m,park Wald,Wälder,m,forest
        Strand,Strände,m,beach,beaches See,Seen,m,lake Fluss,Flüsse,m,river""",
}
# Each place is "noun:German,English:German,English", with the prepositions for being at the place
# and then for going there. For going there, German "in" takes the accusative.
PLACE_ROWS = """Garten:in,in:in,into Küche:in,in:in,into Park:in,in:in,into Dorf:in,in:in,into
    Stadt:in,in:in,into Wald:in,in:in,into Keller:in,in:in,into Zimmer:in,in:in,into
    Büro:in,in:in,into Museum:in,in:zu,to Hotel:in,in:zu,to Restaurant:in,in:in,into
    Kirche:in,in:in,into Theater:in,in:zu,to Bibliothek:in,in:in,into Krankenhaus:in,in:in,into
    Bäckerei:in,in:zu,to Fabrik:in,in:zu,to Schloss:in,in:zu,to Turm:in,in:zu,to Haus:in,in:in,into
    Bahnhof:an,at:zu,to Flughafen:an,at:zu,to Hafen:an,at:zu,to Markt:auf,at:zu,to
    Strand:an,on:zu,to See:an,at:zu,to Fluss:an,at:zu,to Brücke:auf,on:zu,to Schule:in,in:zu,to"""
# Tags are lists of nouns for verbs whose objects do not match any of the groups above.
TAG_ROWS = {
    "write": "Buch Brief Roman Gedicht Bericht Artikel Nachricht Märchen Geschichte",
    "tell": "Geschichte Märchen",
    "send": "Brief Nachricht Paket Geschenk Bild Buch Bericht",
    "open": "Tür Fenster Tor Kiste Koffer Flasche Tasche Paket Brief Geschenk Schrank",
    "clean": "Fenster Küche Zimmer Büro Keller Teppich Tisch Spiegel Lampe Regal",
    "tidy": "Küche Zimmer Büro Keller Schrank Haus",
    "room": "Küche Zimmer Büro Keller Bibliothek Kirche Museum Restaurant Bäckerei",
    "lockable": "Tür Tor Haus Auto Schrank Zimmer Büro Koffer",
    "build": "Haus Boot Turm Brücke Schrank Tisch Regal Stuhl",
    "carry": "Kiste Koffer Tasche Paket Korb Stuhl Regenschirm Kind",
    "bake": "Kuchen Pfannkuchen Brot",
    "cook": "Suppe Ei Fisch Kartoffel Reis Fleisch",
    "cut": "Brot Käse Kuchen Tomate Apfel Fleisch Birne Wurst",
    "peel": "Apfel Birne Banane Kartoffel Ei",
    "machine": """Auto Fahrrad Motorrad Boot Lampe Computer Kamera Handy Stuhl Schrank Tür Fenster
        Gitarre Klavier Bus""",
    "device": "Computer Kamera Handy Fahrrad Motorrad Gitarre Messer Stift Flöte",
    "washable": "Hemd Kleid Jacke Mantel Auto Teller Tasse Apfel Hund Schal Löffel Gabel",
    "explain": "Gedicht Bericht Artikel Nachricht Geschichte Landkarte Bild",
    "pet": "Hund Katze Hase Ziege Maus Ente",
    "funny": "Geschichte Märchen Artikel Brief Bild Buch Gedicht",
    "catch": "Maus Hase Vogel Ball Fisch Huhn",
    "rent": "Auto Boot Haus Zimmer Fahrrad Büro Motorrad",
    "visit": "Museum Schloss Kirche Dorf Schule Theater Bibliothek Fabrik Stadt",
    "sight": "Schloss Kirche Turm Brücke Baum Blume Bild Pferd Garten Kleid Haus Rose",
    "portable": """Regenschirm Buch Brief Zeitung Schlüssel Lampe Ring Handy Kamera Ball Puppe Tasse
        Bild Stift Landkarte Hut Tasche Roman Jacke Teller Gabel Löffel Kerze Schal Tagebuch Spiegel
        Messer Geschenk""",
    "surface": "Tisch Stuhl Bett Sofa Regal Schrank Teppich",
    "collect": """Bild Stift Ball Puppe Landkarte Ring Lampe Buch Gedicht Märchen Hut Blume Messer
        Kerze""",
    "price": """Buch Lampe Regenschirm Ring Ball Puppe Tasche Mantel Jacke Hemd Kleid Stuhl Tisch
        Gitarre Fahrrad Kamera Hut Schal Spiegel Teppich Koffer Roman Messer Geige Flöte Korb Handy
        Trommel""",
}
# Each adjective is "German,English[,German stem]:nouns and noun groups that it fits". The stem is
# given only if it loses a vowel.
ADJECTIVE_ROWS = """jung,young:person
    alt,old:person,animal,text,thing,holder,door,cloth,furniture,vehicle,instrument,place,transit,\
Baum
    neu,new:transit,text,thing,holder,door,cloth,furniture,vehicle,instrument,Brücke,Schule,Museum,\
Hotel,Haus,Fabrik,Bahnhof
    nett,nice:person,kin,child klug,smart:person,kin,child,Hund,Katze,Pferd,Esel
    fleißig,hardworking:person,kin,child
    berühmt,famous:person höflich,polite:person,child mutig,brave:person,kin,child,Hund
    fröhlich,cheerful:person,child
    stark,strong:person,Pferd,Esel freundlich,friendly:person,kin,child,Hund reich,rich:person
    arm,poor:person
    ruhig,quiet:child,nature,Dorf,Zimmer,Bibliothek,Hotel streng,strict:kin
    geduldig,patient:person,kin,Esel
    ehrlich,honest:person,kin neugierig,curious:child,animal
    klein,small:child,animal,plant,place,nature,holder,furniture,thing
    groß,big:animal,dish,fruit,veg,holder,door,furniture,plant,place,nature,Geschenk,Spiegel,Ball,\
Messer,Bild,Teller
    braun,brown:animal,holder,cloth,furniture
    weiß,white:animal,holder,door,cloth,furniture,plant,Kerze
    schwarz,black:animal,holder,cloth,furniture,vehicle,instrument,Regenschirm,Handy
    rot,red:transit,holder,door,cloth,furniture,vehicle,Apfel,Tomate,Kirsche,Rose,Ball,Kerze,Tasse,\
Stift
    grün,green:door,holder,cloth,vehicle,Apfel,Tasse,Stift,Lampe
    gelb,yellow:transit,cloth,vehicle,plant,Apfel,Birne,Banane,Ball,Lampe
    frisch,fresh:Salat,Ei,Fisch,fruit,veg,Brot,Fleisch,Milch,Wasser,Saft,Kuchen
    lecker,delicious:dish,fruit,veg,staple,drink
    süß,sweet:fruit,Tee,Saft,Limonade,Kuchen,Pfannkuchen heiß,hot:Tee,Kaffee,Milch,Suppe,Wasser
    warm,warm:Mantel,Jacke,Schal,Milch,Brot
    kalt,cold:drink,Suppe
    billig,cheap:dish,fruit,veg,staple,drink,thing,cloth,furniture,vehicle,instrument,holder
    teuer,expensive,teur:thing,cloth,furniture,vehicle,instrument
    lang,long:Brief,Gedicht,Bericht,Artikel,Nachricht,Geschichte,Roman
    kurz,short:Brief,Gedicht,Bericht,Artikel,Nachricht,Geschichte,Märchen
    interessant,interesting:text,Museum,Stadt,Dorf
    spannend,exciting:Buch,Roman,Geschichte,Märchen,Artikel
    langweilig,boring:Buch,Zeitung,Roman,Bericht,Artikel,Geschichte,Museum
    lustig,funny:kin,Gedicht,Geschichte,Märchen,Brief,Buch,Bild
    traurig,sad:Brief,Gedicht,Geschichte,Märchen,Nachricht,Kind
    schön,beautiful:text,thing,cloth,furniture,instrument,plant,place,nature,animal
    kaputt,broken:furniture,vehicle,instrument,door,Lampe,Regenschirm,Handy,Kamera,Puppe,Spiegel,\
Computer
    schwer,heavy:holder,furniture leicht,light:holder,Fahrrad,Stuhl
    schmutzig,dirty:cloth,door,vehicle,Teller,Tasse,Löffel,Gabel,Messer
    sauber,clean:cloth,Teller,Tasse,Löffel,Gabel,Messer,Küche,Zimmer,Hotel
    modern,modern:furniture,vehicle,transit,Küche,Büro,Museum,Hotel,Krankenhaus,Fabrik,Bahnhof,\
Flughafen,Schule,Bibliothek,Theater
    schnell,fast:vehicle,transit,Pferd,Hase,Hund"""
STATE_ROWS = """müde,tired krank,sick hungrig,hungry durstig,thirsty glücklich,happy traurig,sad
    nervös,nervous wütend,angry zufrieden,satisfied gesund,healthy allein,alone fertig,ready"""
# States that German expresses with "haben": "German,English verb,English complement".
HAVING_ROWS = """Zeit,have,time keine_Zeit,have,no_time Geld,have,money kein_Geld,have,no_money
    Angst,be,afraid Urlaub,be,on_vacation gute_Laune,be,in_a_good_mood"""
# Each verb is "infinitive[/changed stem],participle,h|s,English,English past:frame:objects:flags".
#
# In the infinitive, "|" follows a separable prefix and "+" separates stem and ending. "h" and "s"
# are the auxiliaries "haben" and "sein". The first letter of the frame says what the verb needs:
#   T an accusative object, C a plural one, D a dative and an accusative object (O: with "to" in
#   English), H a dative object, I a prepositional one ("Ipreposition/case/English"), N nothing,
#   G a place to go to, Y a city to travel to, L a place to stay, U an object and a place to put it,
#   X a clause.
# The flags mean: S no progressive form, B describes a lasting state, E is never a habit, X does not
# happen on purpose, P can have a place, M can have a manner, Q its object can be asked for, F its
# object must have no possessive, D its object must be definite, W its object must be indefinite.
VERB_ROWS = """
ess+en/iss,gegessen,h,eat,ate:T:dish,fruit,veg,staple:PMQ
trink+en,getrunken,h,drink,drank:T:drink:PMQ
kauf+en,gekauft,h,buy,bought:T:dish,fruit,veg,staple,text,thing,cloth,furniture,vehicle,instrument,\
holder,plant:QEF
verkauf+en,verkauft,h,sell,sold:T:thing,furniture,vehicle,instrument,fruit,veg,dish,plant,animal:QE
bestell+en,bestellt,h,order,ordered:T:dish,drink:PQF
probier+en,probiert,h,taste,tasted:T:dish,drink,fruit,staple:Q
les+en/lies,gelesen,h,read,read:T:text:PMQ
schreib+en,geschrieben,h,write,wrote:T:write:PMQF
beschreib+en,beschrieben,h,describe,described:T:place,person:QED
öffn+en,geöffnet,h,open,opened:T:open:MQ
schließ+en,geschlossen,h,close,closed:T:door,holder:MQ
such+en,gesucht,h,look_for,looked:T:portable,animal,cloth,kin,child:PQ
find+en,gefunden,h,find,found:T:portable,animal,cloth,holder:PQEX
verlier+en,verloren,h,lose,lost:T:portable:PQEX
versteck+en,versteckt,h,hide,hid:T:portable,holder:MQE
stehl+en/stiehl,gestohlen,h,steal,stole:T:portable,vehicle:QEX
benutz+en,benutzt,h,use,used:T:device:MQ
hol+en,geholt,h,fetch,fetched:T:portable,holder,drink,staple:Q
brauch+en,gebraucht,h,need,needed:T:thing,cloth,furniture,vehicle,holder:SQB
besitz+en,besessen,h,own,owned:T:vehicle,instrument,furniture,animal:SQBW
lieb+en,geliebt,h,love,loved:T:animal,kin,staple:SB
kenn+en,gekannt,h,know,knew:T:person,child:SQB
seh+en/sieh,gesehen,h,see,saw:T:person,animal,child,transit:SPQ
hör+en,gehört,h,hear,heard:T:person,animal,child:SPXE
besuch+en,besucht,h,visit,visited:T:person,kin,visit:QD
treff+en/triff,getroffen,h,meet,met:T:person,kin:PQ
frag+en,gefragt,h,ask,asked:T:person,kin,child:Q
versteh+en,verstanden,h,understand,understood:T:text,person:SQD
erkenn+en,erkannt,h,recognize,recognized:T:person,child:SQEX
begleit+en,begleitet,h,accompany,accompanied:T:person,kin,child:Q
begrüß+en,begrüßt,h,greet,greeted:T:person,kin,child:PQ
umarm+en,umarmt,h,hug,hugged:T:kin,child:Q
vermiss+en,vermisst,h,miss,missed:T:kin,animal:SX
rett+en,gerettet,h,rescue,rescued:T:animal,child,person:QE
mal+en,gemalt,h,paint,painted:T:sight,animal:MQ
zeichn+en,gezeichnet,h,draw,drew:T:sight,animal,person:MQ
fotografier+en,fotografiert,h,photograph,photographed:T:sight,animal,person:Q
bewunder+n,bewundert,h,admire,admired:T:sight,person:Q
reparier+en,repariert,h,repair,repaired:T:machine:MQ
wasch+en/wäsch,gewaschen,h,wash,washed:T:washable:MQ
putz+en,geputzt,h,clean,cleaned:T:clean:MQD
bau+en,gebaut,h,build,built:T:build:QEF
trag+en/träg,getragen,h,carry,carried:T:carry:Q
back+en,gebacken,h,bake,baked:T:bake:QF
koch+en,gekocht,h,cook,cooked:T:cook:PQF
schneid+en,geschnitten,h,cut,cut:T:cut:MQ
schäl+en,geschält,h,peel,peeled:T:peel:MQ
fütter+n,gefüttert,h,feed,fed:T:animal:PQ
fang+en/fäng,gefangen,h,catch,caught:T:catch:PQF
sammel+n,gesammelt,h,collect,collected:C:collect:Q
zähl+en,gezählt,h,count,counted:C:portable,animal,plant:M
miet+en,gemietet,h,rent,rented:T:rent:QEF
ein|lad+en/läd,eingeladen,h,invite,invited:T:person,kin,child:Q
an|ruf+en,angerufen,h,call,called:T:person,kin:Q
ab|hol+en,abgeholt,h,pick_up,picked:T:kin,person,child:PQ
an|zieh+en,angezogen,h,put_on,put:T:cloth:MQD
aus|zieh+en,ausgezogen,h,take_off,took:T:cloth:MQD
mit|bring+en,mitgebracht,h,bring_along,brought:T:dish,staple,portable,drink,cloth:Q
an|schau+en,angeschaut,h,look_at,looked:T:sight,text:MQD
weg|werf+en/wirf,weggeworfen,h,throw_away,threw:T:portable,cloth:QE
auf|räum+en,aufgeräumt,h,tidy_up,tidied:T:tidy:MQD
ab|schließ+en,abgeschlossen,h,lock,locked:T:lockable:QD
aus|probier+en,ausprobiert,h,try_out,tried:T:device,vehicle:QE
vor|bereit+en,vorbereitet,h,prepare,prepared:T:dish:Q
geb+en/gib,gegeben,h,give,gave:D:portable,fruit,staple,drink:
zeig+en,gezeigt,h,show,showed:D:portable,sight,instrument:
schick+en,geschickt,h,send,sent:D:send:
bring+en,gebracht,h,bring,brought:D:portable,dish,fruit,drink:
leih+en,geliehen,h,lend,lent:D:vehicle,portable,instrument:
erzähl+en,erzählt,h,tell,told:D:tell:
empfehl+en/empfiehl,empfohlen,h,recommend,recommended:O:text,dish,visit:
erklär+en,erklärt,h,explain,explained:O:explain:
vor|les+en/lies,vorgelesen,h,read_out,read:O:text:
zurück|geb+en/gib,zurückgegeben,h,give_back,gave:O:portable,instrument,vehicle:
helf+en/hilf,geholfen,h,help,helped:H:person,kin,child:PQ
dank+en,gedankt,h,thank,thanked:H:person,kin,child:Q
folg+en,gefolgt,s,follow,followed:H:person,kin,animal:Q
antwort+en,geantwortet,h,answer,answered:H:person,kin,child:Q
vertrau+en,vertraut,h,trust,trusted:H:person,kin:SQB
zu|hör+en,zugehört,h,listen_to,listened:H:person,kin,child:Q
gratulier+en,gratuliert,h,congratulate,congratulated:H:person,kin,child:Q
widersprech+en/widersprich,widersprochen,h,contradict,contradicted:H:person,kin:Q
wart+en,gewartet,h,wait,waited:Iauf/acc/for:person,kin,child,transit:PQ
denk+en,gedacht,h,think,thought:Ian/acc/of:person,kin,child:Q
träum+en,geträumt,h,dream,dreamed:Ivon/dat/of:vehicle,visit,animal,kin:Q
sprech+en/sprich,gesprochen,h,speak,spoke:Imit/dat/with:person,kin,child:PQ
spiel+en,gespielt,h,play,played:Imit/dat/with:child,pet:PQ
lach+en,gelacht,h,laugh,laughed:Iüber/acc/about:funny:Q
streit+en,gestritten,h,argue,argued:Imit/dat/with:person,kin:PQ
schlaf+en/schläf,geschlafen,h,sleep,slept:N::PM
arbeit+en,gearbeitet,h,work,worked:N::PM
sing+en,gesungen,h,sing,sang:N::PM
tanz+en,getanzt,h,dance,danced:N::PM
wein+en,geweint,h,cry,cried:N::PMX
lächel+n,gelächelt,h,smile,smiled:N::PX
frühstück+en,gefrühstückt,h,have_breakfast,had:N::P
schwimm+en,geschwommen,s,swim,swam:N::M
auf|steh+en,aufgestanden,s,get_up,got:N::M
auf|wach+en,aufgewacht,s,wake_up,woke:N::PX
ein|schlaf+en/schläf,eingeschlafen,s,fall_asleep,fell:N::PMX
an|komm+en,angekommen,s,arrive,arrived:N::PEX
ab|reis+en,abgereist,s,leave,left:N::M
zurück|komm+en,zurückgekommen,s,come_back,came:N::M
fern|seh+en/sieh,ferngesehen,h,watch_television,watched:N::P
ein|kauf+en,eingekauft,h,go_shopping,went:N::P
weg|lauf+en/läuf,weggelaufen,s,run_away,ran:N::M
geh+en,gegangen,s,go,went:G::
fahr+en/fähr,gefahren,s,drive,drove:G::
komm+en,gekommen,s,come,came:G::
renn+en,gerannt,s,run,ran:G::
wander+n,gewandert,s,hike,hiked:G::
reis+en,gereist,s,travel,traveled:Y::
flieg+en,geflogen,s,fly,flew:Y::
zieh+en,gezogen,s,move,moved:Y::E
wohn+en,gewohnt,h,live,lived:L::SB
bleib+en,geblieben,s,stay,stayed:L::
leg+en,gelegt,h,put,put:U:portable:
"""
PLAIN_VERB_ROWS = """
lieg+en,gelegen,h,lie,lay:X::S
gehör+en,gehört,h,belong,belonged:X::S
kost+en,gekostet,h,cost,cost:X::S
wiss+en,gewusst,h,know,knew:X::S
glaub+en,geglaubt,h,believe,believed:X::S
hoff+en,gehofft,h,hope,hoped:X::S
sag+en,gesagt,h,say,said:X::S
versuch+en,versucht,h,try,tried:X::S
vergess+en/vergiss,vergessen,h,forget,forgot:X::S
hab+en,gehabt,h,have,had:X::S
sei+n,gewesen,s,be,was:X::S
"""
# Irregular present and past forms for ich, du, er, wir, ihr, sie.
IRREGULAR_PRESENT = {
    "sein": "bin bist ist sind seid sind",
    "haben": "habe hast hat haben habt haben",
    "werden": "werde wirst wird werden werdet werden",
    "wissen": "weiß weißt weiß wissen wisst wissen",
    "können": "kann kannst kann können könnt können",
    "müssen": "muss musst muss müssen müsst müssen",
    "wollen": "will willst will wollen wollt wollen",
    "sollen": "soll sollst soll sollen sollt sollen",
    "dürfen": "darf darfst darf dürfen dürft dürfen",
    "möchten": "möchte möchtest möchte möchten möchtet möchten",
}
PRETERITE = {
    "sein": "war warst war waren wart waren",
    "haben": "hatte hattest hatte hatten hattet hatten",
    "können": "konnte konntest konnte konnten konntet konnten",
    "müssen": "musste musstest musste mussten musstet mussten",
    "wollen": "wollte wolltest wollte wollten wolltet wollten",
    "dürfen": "durfte durftest durfte durften durftet durften",
}
# Maps each German modal to its English present and past, and to whether English questions and
# negations use the modal itself ("aux") or "do".
MODALS = {
    "können": ("can", "able to", "aux"),
    "können damit": ("can", "could", "aux"),
    "müssen": ("have to", "had to", "do"),
    "wollen": ("want to", "wanted to", "do"),
    "sollen": ("should", "", "aux"),
    "dürfen": ("allowed to", "allowed to", "aux"),
    "möchten": ("would like to", "", "aux"),
}
# Adverbs and names

TIME_ROWS = {
    "past": """gestern,yesterday gestern_Abend,yesterday_evening vorgestern,the_day_before_yesterday
    letzte_Woche,last_week
        heute_Morgen,this_morning""",
    "past_long": "letzten_Sommer,last_summer letztes_Jahr,last_year letzten_Monat,last_month",
    "habit": """jeden_Tag,every_day jeden_Morgen,every_morning jeden_Abend,every_evening
        jede_Woche,every_week montags,on_Mondays freitags,on_Fridays sonntags,on_Sundays""",
    "now": "gerade,right_now jetzt,now im_Moment,at_the_moment",
    "future": """morgen,tomorrow übermorgen,the_day_after_tomorrow nächste_Woche,next_week bald,soon
        heute_Abend,this_evening""",
    "future_long": "nächsten_Monat,next_month nächstes_Jahr,next_year nächsten_Sommer,next_summer",
    "day": """am_Montag,on_Monday am_Dienstag,on_Tuesday am_Mittwoch,on_Wednesday
        am_Donnerstag,on_Thursday am_Freitag,on_Friday am_Samstag,on_Saturday
        am_Sonntag,on_Sunday""",
}
FREQUENCY_ROWS = (
    "oft,often immer,always manchmal,sometimes selten,rarely nie,never meistens,usually"
)
MANNER_ROWS = {
    "schlafen": "gut,well schlecht,badly lange,for_a_long_time",
    "arbeiten": "fleißig,hard allein,alone lange,for_a_long_time",
    "singen": "laut,loudly leise,quietly schlecht,badly",
    "tanzen": "gut,well schlecht,badly allein,alone lange,for_a_long_time",
    "weinen": "laut,loudly leise,quietly",
    "schwimmen": "schnell,quickly langsam,slowly allein,alone",
    "verstecken": "schnell,quickly heimlich,secretly",
    "aufstehen": "früh,early spät,late langsam,slowly",
    "einschlafen": "schnell,quickly früh,early spät,late",
    "abreisen": "früh,early spät,late heimlich,secretly allein,alone",
    "zurückkommen": "früh,early spät,late allein,alone",
    "weglaufen": "schnell,quickly heimlich,secretly",
    "essen": "langsam,slowly schnell,quickly heimlich,secretly",
    "öffnen": "laut,loudly leise,quietly langsam,slowly",
    "schließen": "laut,loudly leise,quietly schnell,quickly",
    "": "langsam,slowly schnell,quickly sorgfältig,carefully",
}
NUMBER_WORDS = """zwei,two drei,three vier,four fünf,five sechs,six sieben,seven acht,eight
    neun,nine zehn,ten zwölf,twelve"""
WOMEN_ROWS = """Anna Maria Laura Julia Lena Sophie Clara Emma Nina Eva Ida Greta Helga Ingrid Petra
    Sabine Ursula Monika Karin Heike Lisa Paula Martha Frieda Lotte Hanna Mira Nora Olga Vera"""
MEN_ROWS = """Paul Peter Thomas Felix Max Jonas Lukas Martin Stefan Markus Karl Otto Emil Anton
    Bruno Hans Fritz Klaus Jürgen Dieter Uwe Ralf Tobias Simon David Oskar Hugo Erik Konrad
    Walter"""
CITY_ROWS = """Berlin,Berlin Hamburg,Hamburg Dresden,Dresden Leipzig,Leipzig Bremen,Bremen Bonn,Bonn
    Stuttgart,Stuttgart Potsdam,Potsdam Weimar,Weimar Kassel,Kassel Rostock,Rostock Erfurt,Erfurt
    Lübeck,Lübeck Madrid,Madrid Paris,Paris London,London Oslo,Oslo Dublin,Dublin Boston,Boston
    Chicago,Chicago Lima,Lima Toronto,Toronto Sydney,Sydney Amsterdam,Amsterdam Budapest,Budapest
    Helsinki,Helsinki Wien,Vienna München,Munich Köln,Cologne Rom,Rome Prag,Prague"""


@dataclass(frozen=True)
class Noun:
    """A noun in both languages, with the group it belongs to."""

    singular: str
    plural: str
    gender: str
    weak: bool
    en: str
    en_plural: str
    group: str

    @property
    def mass(self) -> bool:
        """Whether the noun has no plural and no indefinite article."""
        return self.plural == "-"

    def form(self, plural: bool, case: str) -> str:
        """Return the German form for a number and case."""
        if plural:
            return self.plural + ("n" if case == "dat" and self.plural[-1] not in "ns" else "")
        if not self.weak or case == "nom":
            return self.singular
        return self.singular + (
            "n" if self.singular[-1] == "e" or self.singular in ("Bauer", "Nachbar") else "en"
        )


@dataclass(frozen=True)
class Adjective:
    """An adjective in both languages."""

    de: str
    en: str
    stem: str  # the German stem that endings are added to
    groups: tuple[str, ...]  # the nouns and noun groups that it fits


@dataclass(frozen=True)
class Verb:
    """A verb in both languages."""

    prefix: str  # separable prefix, or ""
    stem: str
    ending: str  # "en" or "n"
    changed: str  # the stem after `du` and `er` if it differs, or ""
    participle: str
    aux: str  # "haben" or "sein"
    en: str
    en_past: str
    frame: str  # what the verb needs, see VERB_ROWS
    objects: tuple[str, ...]  # groups and tags of nouns that can be its object
    flags: str  # see VERB_ROWS

    @property
    def plain(self) -> str:
        """The infinitive without the separable prefix."""
        return self.stem + self.ending

    @property
    def infinitive(self) -> str:
        """The infinitive with the separable prefix."""
        return self.prefix + self.plain

    @property
    def zu_infinitive(self) -> str:
        """The infinitive with `zu`, which goes between a separable prefix and the verb."""
        return f"{self.prefix}zu{self.plain}" if self.prefix else f"zu {self.plain}"


@dataclass(frozen=True)
class Pair:
    """A German string with its English translation."""

    de: str
    en: str


@dataclass(frozen=True)
class NounPhrase:
    """A noun phrase or pronoun in both languages."""

    cases: tuple[str, str, str]  # German nominative, accusative, dative
    en: str  # as a subject
    en_object: str  # as an object
    person: int = 3
    plural: bool = False
    gender: str = "n"
    pronoun: bool = False

    def de(self, case: str) -> str:
        """Return the German phrase in `case`."""
        return self.cases[CASES.index(case)]

    @property
    def row(self) -> int:
        """The index of the matching verb form, in the order ich, du, er, wir, ihr, sie."""
        return self.person - 1 + (3 if self.plural else 0)


@dataclass(frozen=True)
class Clause:
    """The content of a clause. The word order is chosen when the clause is written."""

    subject: NounPhrase
    verb: Verb
    tense: str = "pres"  # or "perf", "fut", "prog"
    modal: str = ""  # a key of MODALS
    pronoun: str = ""  # German object pronoun, directly after the finite verb
    middle: str = ""  # German objects
    tail: str = ""  # German prepositional object, destination, manner or predicate
    en: str = ""  # the English for pronoun, middle and tail
    time: Pair | None = None
    frequency: Pair | None = None
    negated: bool = False  # with `nicht`
    kein: bool = False  # with `kein`
    place: Pair | None = None
    frontable: bool = False  # whether the German object may come first
    infix: str = ""  # English object between a verb and its particle, as in `pick him up`

    @property
    def denied(self) -> bool:
        """Whether the clause is negated, with `nicht` or with `kein`."""
        return self.negated or self.kein


def pairs(rows: str) -> list[Pair]:
    """Read "German,English" entries, which are separated by spaces; "_" stands for a space."""
    cells = [row.replace("_", " ").split(",") for row in rows.split()]
    return [Pair(cell[0], cell[1]) for cell in cells]


def _read_noun(row: str, group: str) -> Noun:
    cells = row.replace("_", " ").split(",")
    plural = cells[4] if len(cells) > 4 else cells[3] + "s"
    return Noun(cells[0], cells[1], cells[2][0], cells[2].endswith("w"), cells[3], plural, group)


def _read_adjective(row: str) -> Adjective:
    words, groups = row.split(":")
    cells = words.split(",")
    stem = cells[2] if len(cells) > 2 else cells[0].removesuffix("e")
    return Adjective(cells[0], cells[1], stem, tuple(groups.split(",")))


def _read_verb(row: str) -> Verb:
    forms, frame, objects, flags = row.split(":")
    german, participle, aux, en, past = forms.split(",")
    infinitive, _, changed = german.partition("/")
    prefix, _, rest = infinitive.rpartition("|")
    stem, ending = rest.split("+")
    kinds = tuple(objects.split(",")) if objects else ()
    english, particle = en.split("_")[0], en.split("_")[1:]
    past = " ".join([past, *particle])
    return Verb(
        prefix,
        stem,
        ending,
        changed,
        participle,
        "sein" if aux == "s" else "haben",
        " ".join([english, *particle]),
        past,
        frame,
        kinds,
        flags,
    )


NOUNS = [_read_noun(row, group) for group, rows in NOUN_ROWS.items() for row in rows.split()]
NOUN = {noun.singular: noun for noun in NOUNS}
ADJECTIVES = [_read_adjective(row) for row in ADJECTIVE_ROWS.split()]
STATES = {state.de: state for state in pairs(STATE_ROWS)}
VERBS = [_read_verb(row) for row in VERB_ROWS.split()]
PLAIN_VERBS = {verb.infinitive: verb for verb in map(_read_verb, PLAIN_VERB_ROWS.split())}
HAVINGS = {
    cells[0]: (cells[1], cells[2])
    for cells in (row.replace("_", " ").split(",") for row in HAVING_ROWS.split())
}
TIMES = {kind: pairs(rows) for kind, rows in TIME_ROWS.items()}
FREQUENCIES = pairs(FREQUENCY_ROWS)
MANNERS = {verb: pairs(rows) for verb, rows in MANNER_ROWS.items()}
NUMBERS = pairs(NUMBER_WORDS)
CITIES = pairs(CITY_ROWS)
WOMEN = WOMEN_ROWS.split()
MEN = MEN_ROWS.split()
PLACES = {
    row.split(":")[0]: (pairs(row.split(":")[1])[0], pairs(row.split(":")[2])[0])
    for row in PLACE_ROWS.split()
}


def nouns_of(kind: str) -> list[Noun]:
    """Return the nouns in a group or a tag."""
    if kind in TAG_ROWS:
        return [NOUN[lemma] for lemma in TAG_ROWS[kind].split()]
    return [noun for noun in NOUNS if noun.group == kind]


# German noun phrases

_DEFINITE = {"m": "der den dem", "f": "die die der", "n": "das das dem", "p": "die die den"}
_EIN = {"m": "- en em", "f": "e e er", "n": "- - em", "p": "e e en"}
_STRONG = {"m": "er en em", "f": "e e er", "n": "es es em", "p": "e e en"}
_WEAK = {"m": "e en en", "f": "e e en", "n": "e e en", "p": "en en en"}
_MIXED = {"m": "er en en", "f": "e e en", "n": "es es en", "p": "en en en"}
EIN_WORDS = {
    "ein": "a",
    "kein": "a",
    "mein": "my",
    "dein": "your",
    "sein": "his",
    "ihr": "her",
    "unser": "our",
    "euer": "your",
}
DER_WORDS = {"der": "the", "dies": "this", "welch": "which"}
_CONTRACTIONS = {
    "in dem": "im",
    "an dem": "am",
    "zu dem": "zum",
    "zu der": "zur",
    "von dem": "vom",
    "bei dem": "beim",
    "in das": "ins",
    "an das": "ans",
}


def determiner(word: str, gender: str, case: str) -> str:
    """Return a form of the German determiner `word`. "" and number words have only one form."""
    at = CASES.index(case)
    if word == "der":
        return _DEFINITE[gender].split()[at]
    if word in DER_WORDS:
        return word + _STRONG[gender].split()[at]
    if word in EIN_WORDS:
        ending = _EIN[gender].split()[at].replace("-", "")
        return ("eur" if word == "euer" and ending else word) + ending
    return word


def adjective_ending(word: str, gender: str, case: str) -> str:
    """Return the ending of an adjective after the determiner `word`."""
    table = _WEAK if word in DER_WORDS else _MIXED if word in EIN_WORDS else _STRONG
    return table[gender].split()[CASES.index(case)]


def prepositional(preposition: str, phrase: str) -> str:
    """Join a German preposition and a phrase, with the usual contractions."""
    article, _, rest = phrase.partition(" ")
    short = _CONTRACTIONS.get(f"{preposition} {article}")
    return f"{short} {rest}" if short and rest else f"{preposition} {phrase}"


def with_article(phrase: str) -> str:
    """Put `a` or `an` before an English phrase."""
    return f"{'an' if phrase[0] in 'aeiou' or phrase.startswith('honest') else 'a'} {phrase}"


def noun_phrase(
    noun: Noun, word: str, plural: bool, adjective: Adjective | None, english: str = ""
) -> NounPhrase:
    """Build a noun phrase in both languages.

    `word` is the basic form of the German determiner, a number word, or "". `english` is the
    English determiner; by default it follows from `word`.
    """
    gender = "p" if plural else noun.gender
    cases = []
    for case in CASES:
        inner = adjective.stem + adjective_ending(word, gender, case) if adjective else ""
        cases.append(joined(determiner(word, gender, case), inner, noun.form(plural, case)))
    bare = joined(adjective.en if adjective else "", noun.en_plural if plural else noun.en)
    en = _english_determined(word, bare, plural, noun.mass, english)
    return NounPhrase((cases[0], cases[1], cases[2]), en, en, 3, plural, noun.gender)


def _english_determined(word: str, bare: str, plural: bool, mass: bool, english: str) -> str:
    if english:
        return f"{english} {bare}"
    if word in ("ein", "kein"):
        return f"any {bare}" if plural or mass else with_article(bare)
    if word == "dies" and plural:
        return f"these {bare}"
    return joined(EIN_WORDS.get(word) or DER_WORDS.get(word, ""), bare)


def joined(*parts: str) -> str:
    """Join the nonempty parts with spaces."""
    return " ".join(part for part in parts if part)


_PRONOUN_ROWS = """ich,mich,mir,I,me,1 du,dich,dir,you,you,2 er,ihn,ihm,he,him,3 sie,-,ihr,she,her,3
    wir,uns,uns,we,us,4 ihr,euch,euch,you,you,5 sie,-,ihnen,they,them,6"""


def _read_pronoun(row: str) -> NounPhrase:
    nom, acc, dat, en, en_object, number = row.split(",")
    at = int(number) - 1
    gender = {"er": "m", "she": "f"}.get(nom if nom == "er" else en, "n")
    return NounPhrase((nom, acc, dat), en, en_object, at % 3 + 1, at > 2, gender, True)


PRONOUNS = [_read_pronoun(row) for row in _PRONOUN_ROWS.split()]


def relative_pronoun(phrase: NounPhrase, case: str) -> str:
    """Return the German relative pronoun that refers to `phrase`."""
    if phrase.plural:
        return {"nom": "die", "acc": "die", "dat": "denen"}[case]
    return determiner("der", phrase.gender, case)


# German verbs


def present(verb: Verb, row: int) -> str:
    """Return the present tense of a verb, without its separable prefix."""
    irregular = IRREGULAR_PRESENT.get(verb.plain)
    if irregular:
        return irregular.split()[row]
    if row in (3, 5):
        return verb.plain
    if row == 0:
        return (
            verb.stem[:-2] + "l" if verb.stem.endswith("el") and verb.ending == "n" else verb.stem
        ) + "e"
    stem = verb.changed if verb.changed and row in (1, 2) else verb.stem
    soft = stem == verb.stem and (stem[-1] in "td" or stem.endswith(("ffn", "chn")))
    if row == 1:
        return stem + ("est" if soft else "t" if stem[-1] in "sßz" else "st")
    return stem + ("et" if soft else "t")


def verb_group(clause: Clause) -> tuple[str, list[str], str]:
    """Return the German verb forms of a clause.

    These are the finite verb for a main clause, the words that end a main clause (such as an
    infinitive or a separable prefix), and the finite verb for a subordinate clause.
    """
    verb, row = clause.verb, clause.subject.row
    if clause.modal:
        table = PRETERITE if clause.tense == "perf" else IRREGULAR_PRESENT
        finite = table[clause.modal.split()[0]].split()[row]
        return finite, [verb.infinitive], finite
    if clause.tense == "perf" and verb.infinitive in PRETERITE:
        finite = PRETERITE[verb.infinitive].split()[row]
        return finite, [], finite
    if clause.tense == "perf":
        finite = IRREGULAR_PRESENT[verb.aux].split()[row]
        return finite, [verb.participle], finite
    if clause.tense == "fut" and clause.time is None:
        finite = IRREGULAR_PRESENT["werden"].split()[row]
        return finite, [verb.infinitive], finite
    finite = present(verb, row)
    return finite, [verb.prefix] if verb.prefix else [], verb.prefix + finite


def _middle(clause: Clause, front: str) -> list[str]:
    time = clause.time.de if clause.time and front != "time" else ""
    often = clause.frequency.de if clause.frequency else ""
    middle = clause.middle if front != "object" else ""
    place = clause.place.de if clause.place and front != "place" else ""
    no = "nicht" if clause.negated else ""
    return [clause.pronoun, time, often, middle, place, no, clause.tail]


def _fronted(clause: Clause, front: str) -> str:
    if front == "time" and clause.time:
        return clause.time.de
    if front == "place" and clause.place:
        return clause.place.de
    return clause.middle if front == "object" else front.removeprefix("-")


def german_main(clause: Clause, front: str = "") -> str:
    """Write a German main clause.

    `front` says what comes before the verb: "time", "place", "object", "" (the subject), "-"
    (nothing, as in a question), or any other words as they are.
    """
    finite, end, _ = verb_group(clause)
    subject = clause.subject.de("nom")
    rest = [*_middle(clause, front), *end]
    if not front:
        return joined(subject, finite, *rest)
    return joined(_fronted(clause, front), finite, subject, *rest)


def german_last(clause: Clause) -> str:
    """Write a German subordinate clause, without its conjunction."""
    finite, end, last = verb_group(clause)
    closing = [last] if clause.verb.prefix and last != finite else [*end, last]
    return joined(clause.subject.de("nom"), *_middle(clause, ""), *closing)


def german_infinitive(clause: Clause) -> str:
    """Write the clause as a German infinitive with `zu`."""
    return joined(*_middle(clause, ""), clause.verb.zu_infinitive)


# English verbs

_DOUBLED = ("get", "put", "run", "swim", "hug", "cut", "sit", "forget")


def third_person(base: str) -> str:
    """Return the third person singular of an English verb, inflecting its first word."""
    word, _, rest = base.partition(" ")
    if word == "have":
        form = "has"
    elif word.endswith(("s", "sh", "ch", "x", "o")):
        form = word + "es"
    elif word.endswith("y") and word[-2] not in "aeiou":
        form = word[:-1] + "ies"
    else:
        form = word + "s"
    return joined(form, rest)


def gerund(base: str) -> str:
    """Return the -ing form of an English verb, inflecting its first word."""
    word, _, rest = base.partition(" ")
    if word in _DOUBLED:
        form = word + word[-1] + "ing"
    elif word == "lie":
        form = "lying"
    elif word.endswith("e") and not word.endswith("ee"):
        form = word[:-1] + "ing"
    else:
        form = word + "ing"
    return joined(form, rest)


def be(row: int, past: bool) -> str:
    """Return the form of `be` for the person with this index (see `NounPhrase.row`)."""
    return ("was were was were were were" if past else "am are is are are are").split()[row]


def english_group(clause: Clause, supported: bool) -> tuple[str, str]:
    """Return the English auxiliary (or "") and the rest of the verb.

    If `supported`, as in questions and negations, there is always an auxiliary: if need be, `do`.
    """
    aux, rest = _modal_group(clause, supported) if clause.modal else _plain_group(clause, supported)
    if clause.infix:
        verb, _, particle = rest.rpartition(" ")
        rest = joined(verb, clause.infix, particle)
    return aux, rest


def _plain_group(clause: Clause, supported: bool) -> tuple[str, str]:
    verb, row, past = clause.verb, clause.subject.row, clause.tense == "perf"
    if verb.en == "be":
        return be(row, past), ""
    if clause.tense == "prog":
        return be(row, False), gerund(verb.en)
    if clause.tense == "fut":
        return "will", verb.en
    if supported:
        return _do(row, past), verb.en
    return "", verb.en_past if past else third_person(verb.en) if row == 2 else verb.en


def _do(row: int, past: bool) -> str:
    return "did" if past else "does" if row == 2 else "do"


def _modal_group(clause: Clause, supported: bool) -> tuple[str, str]:
    now, before, kind = MODALS[clause.modal]
    row, past, base = clause.subject.row, clause.tense == "perf", clause.verb.en
    phrase = before if past else now
    if phrase in ("able to", "allowed to"):
        return be(row, past), f"{phrase} {base}"
    if kind == "do":
        if supported:
            return _do(row, past), f"{now} {base}"
        return "", f"{third_person(now) if row == 2 and not past else phrase} {base}"
    aux, _, rest = phrase.partition(" ")
    return aux, joined(rest, base)


def _english_rest(clause: Clause, front: str) -> list[str]:
    place = clause.place.en if clause.place and front != "place" else ""
    time = clause.time.en if clause.time and front != "time" else ""
    return [clause.en, place, time]


def _english_front(clause: Clause, front: str) -> str:
    if front == "time" and clause.time:
        return clause.time.en
    return clause.place.en if front == "place" and clause.place else ""


def english_main(clause: Clause, front: str = "") -> str:
    """Write an English statement. If `front` is "time" or "place", that part comes first."""
    aux, rest = english_group(clause, clause.denied)
    often = clause.frequency.en if clause.frequency else ""
    no = "not" if clause.denied else ""
    aux, no = ("cannot", "") if (aux, no) == ("can", "not") else (aux, no)
    words = joined(clause.subject.en, aux, no, often, rest, *_english_rest(clause, front))
    return joined(_english_front(clause, front), words)


def english_question(clause: Clause, front: str = "", stranded: str = "") -> str:
    """Write an English question.

    `front` is a question word, and `stranded` a preposition that stays behind the verb.
    """
    aux, rest = english_group(clause, True)
    no = "not" if clause.denied else ""
    often = clause.frequency.en if clause.frequency else ""
    en, place, time = _english_rest(clause, "")
    return joined(front, aux, clause.subject.en, no, often, rest, stranded, en, place, time)


def english_infinitive(clause: Clause) -> str:
    """Write the clause as an English infinitive with `to`."""
    word, _, particle = clause.verb.en.partition(" ")
    return joined("to", word, clause.infix, particle, *_english_rest(clause, ""))


# The lexicon as a whole

Lexicon = dict[str, set[str]]
_FUNCTION_WORDS = """und,and aber,but weil,because obwohl,although wenn,if dass,that ob,whether
    während,while bevor,before nicht,not mit,with auf,on in,in unter,under neben,next_to
    hinter,behind aus,from wo,where wann,when warum,why"""


def _german_verb_forms(verb: Verb) -> set[str]:
    # Forms without the separable prefix do not count, because they belong to another verb.
    finite = {verb.prefix + present(verb, row) for row in range(6)}
    return {verb.infinitive, verb.participle, verb.zu_infinitive} | finite


def lexicon() -> tuple[Lexicon, Lexicon]:
    """Return the German and the English lexicon. Each maps every lemma to all its forms."""
    german: Lexicon = {}
    english: Lexicon = {}
    for noun in NOUNS:
        german[noun.singular] = {
            noun.form(plural, case) for plural in (False, not noun.mass) for case in CASES
        }
        english[noun.en] = {noun.en} if noun.mass else {noun.en, noun.en_plural}
    for adjective in ADJECTIVES:
        german[adjective.de] = {
            adjective.stem + ending for ending in ("e", "en", "er", "es", "em")
        } | {adjective.de}
        english[adjective.en] = {adjective.en}
    for verb in [*VERBS, *PLAIN_VERBS.values()]:
        german[verb.infinitive] = _german_verb_forms(verb)
        if verb.frame == "O" and " " in verb.en:
            continue  # the object always stands between the English verb and its particle
        english[verb.en] = {verb.en, verb.en_past, third_person(verb.en), gerund(verb.en)}
    adverbs = [
        pair
        for entries in (*TIMES.values(), *MANNERS.values(), FREQUENCIES, NUMBERS)
        for pair in entries
    ]
    names = [Pair(name, name) for name in WOMEN + MEN]
    for pair in [*adverbs, *STATES.values(), *CITIES, *pairs(_FUNCTION_WORDS), *names]:
        german.setdefault(pair.de, set()).add(pair.de)
        english.setdefault(pair.en, set()).add(pair.en)
    return german, english
